"""The Ray Data dataset of one model: from its work list, through the actors of the two stages, to receipts."""

import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from cluster.nodes import Layout
from cluster.ray_internals import ActorsLost, StageLoad, StageWatch, map_blocks
from cluster.session import cluster_layout, last_error_line
from pipelines.blocks import blocks_per_engine, listened_bytes, recordings_per_block
from pipelines.job import Job
from pipelines.output import Output
from pipelines.poison import AttemptTracker
from pipelines.ray_data import configure_ray_data
from pipelines.stages import Listen, Transcribe
from speech.engines.base import EngineStarter
from speech.errors import RayscribeError
from storage.filesystem import Storage

log = logging.getLogger("rayscribe")


def listener_resources(layout: Layout) -> dict[str, Any]:
    """What Ray is asked for a Listener: nodes without engines first, others only where the layout has it."""
    return {
        "num_cpus": layout.cpus_per_listener,
        "label_selector": dict(layout.listener_labels) or None,
        "fallback_strategy": [{"label_selector": {}}] if layout.listeners_anywhere else None,
    }


class ModelDataset:
    """The dataset of one model, as ``pipelines.model_runs`` runs it.

    Args:
        job: its options, models and limits.
        model: position of the model in the job's rules.
        start: starts an engine.
        storage: opens the audio.
        output: where transcripts are committed.
        blocks: references to WORK tables.
        to_do: their rows.
        layout: this model's part of it: the numbers of actors, and the resources of each.
    """

    def __init__(
        self,
        job: Job,
        model: int,
        start: EngineStarter,
        storage: Storage,
        output: Output,
        blocks: list[Any],
        to_do: int,
        layout: Layout,
    ) -> None:
        self._job, self._model = job, model
        self._start, self._storage, self._output = start, storage, output
        self._blocks, self._to_do = blocks, to_do
        self._layout = layout
        self._watch = StageWatch(job.lost_wait_s, self._has_room)
        self.lost_actors = False

    def load(self, stage: type) -> StageLoad:
        """What the actors of a stage were doing a moment ago."""
        return self._watch.load(stage)

    def resize(self, layout: Layout) -> None:
        self._watch.limit(Listen, 1, layout.listeners)
        # At least those that have room: Ray Data would not give them to one of several datasets.
        self._watch.limit(Transcribe, layout.engines_now, layout.engines)

    def stop(self) -> None:
        self._watch.stop()

    def receipts(self) -> Iterator[pa.Table]:
        """Executes the dataset and yields the receipts of committed blocks, as they are committed.

        It ends without those of some blocks where ``lost_actors`` is true then.

        Raises:
            RayscribeError: ``run_failed``.
        """
        dataset = self._transcribed()
        try:
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        except ActorsLost:
            self.lost_actors = True
        except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
            raise RayscribeError(
                "run_failed",
                f"the run failed: {last_error_line(error)} (what is committed is kept; see the logs of Ray's session)",
            ) from error

    def _has_room(self) -> bool:
        """Whether an engine that is lost starts again: nodes have room for all. A Listener does at once if it can."""
        if not self._job.cluster.address:
            return True
        try:
            layout = cluster_layout(self._job.cluster)
        except Exception:  # the connection to Ray: what is not known is no reason to end the dataset
            log.exception("looking for room for lost actors")
            return True
        engines = self.load(Transcribe)
        return engines.lost > 0 and not layout.missing and engines.actors <= layout.engines_now

    def _transcribed(self) -> ray.data.Dataset:
        """The dataset of receipts."""
        configure_ray_data()
        layout = self._layout
        # Restarted if its node is lost; its counts are lost, which costs a poison recording another attempt.
        attempts = ray.remote(AttemptTracker).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        work = ray.data.from_arrow_refs(self._blocks)
        self._watch.attach(work)
        work = work.repartition(target_num_rows_per_block=recordings_per_block(self._to_do, layout.listeners))
        listened = map_blocks(
            work,
            Listen,
            (
                self._job.options,
                self._job.rules,
                self._model,
                self._storage,
                attempts,
                self._job.listen_timeout_s,
                listened_bytes(layout.engines),
            ),
            ActorPoolStrategy(min_size=1, max_size=self._most_listeners),
            **listener_resources(layout),
        )
        clips = layout.concurrent_clips(self._job.rules[self._model])
        in_flight = blocks_per_engine(clips, layout.engines)
        return map_blocks(
            listened,
            Transcribe,
            (self._job.rules, self._model, layout.engines_per_gpu, self._start, attempts, self._output),
            ActorPoolStrategy(
                min_size=layout.engines_now,
                max_size=self._most_engines,
                max_tasks_in_flight_per_actor=2 * in_flight,
                max_concurrent_calls_per_actor=in_flight,
                enable_true_multi_threading=True,
            ),
            num_cpus=layout.cpus_per_engine,
            num_gpus=layout.gpus_per_engine or None,
            resources=dict(layout.engine_resources) or None,
            runtime_env=layout.engine_runtime_env,
        )

    @property
    def _most_listeners(self) -> int | None:
        """None: as many as nodes that come later have room for; not if they could take the cores of engines there."""
        if not self._layout.grows or self._layout.listeners_anywhere:
            return self._layout.listeners
        return self._job.cluster.listeners

    @property
    def _most_engines(self) -> int | None:
        """None: as many as nodes that come later have room for."""
        return self._job.cluster.engines if self._layout.grows else self._layout.engines
