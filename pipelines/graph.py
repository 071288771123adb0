"""The Ray Data dataset of the job: from the work list, through the actors of the two stages, to receipts."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from cluster.nodes import Layout
from cluster.ray_internals import map_blocks
from cluster.session import last_error_line
from pipelines.blocks import BLOCKS_PER_ENGINE, recordings_per_block
from pipelines.job import Job
from pipelines.output import Output
from pipelines.poison import AttemptTracker
from pipelines.ray_data import configure_ray_data
from pipelines.stages import Listen, Transcribe
from speech.engines.base import EngineStarter
from speech.errors import RayscribeError
from storage.filesystem import Storage


def listener_resources(layout: Layout) -> dict[str, Any]:
    """What Ray is asked for a Listener: nodes without engines first, others only where the layout has it."""
    return {
        "num_cpus": layout.cpus_per_listener,
        "label_selector": dict(layout.listener_labels) or None,
        "fallback_strategy": [{"label_selector": {}}] if layout.listeners_anywhere else None,
    }


def _most_listeners(job: Job, layout: Layout) -> int | None:
    """None: as many as nodes that come later have room for; not if they could take the cores of engines there."""
    if job.cluster.listeners:
        return job.cluster.listeners
    return None if layout.grows and not layout.listeners_anywhere else layout.listeners


def receipts(
    job: Job, start: EngineStarter, storage: Storage, output: Output, blocks: list[Any], to_do: int, layout: Layout
) -> Iterator[pa.Table]:
    """Runs the dataset and yields the receipts of committed blocks, as they are committed.

    Args:
        job: its options, model and limits.
        start: starts an engine.
        storage: opens the audio.
        output: where transcripts are committed.
        blocks: references to WORK tables.
        to_do: their rows.
        layout: the numbers of actors, and the resources of each.

    Raises:
        RayscribeError: ``run_failed``.
    """
    configure_ray_data()
    # Restarted if its node is lost; its counts are lost, which costs a poison recording another attempt.
    attempts = ray.remote(AttemptTracker).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    work = ray.data.from_arrow_refs(blocks).repartition(
        target_num_rows_per_block=recordings_per_block(to_do, layout.listeners)
    )
    listened = map_blocks(
        work,
        Listen,
        (job.options, job.engine_config, storage, attempts, job.listen_timeout_s),
        ActorPoolStrategy(min_size=1, max_size=_most_listeners(job, layout)),
        **listener_resources(layout),
    )
    dataset = map_blocks(
        listened,
        Transcribe,
        (job.engine_config, layout.engines_per_gpu, start, attempts, output),
        ActorPoolStrategy(
            min_size=layout.engines_now,
            # None: as many as nodes that come later have room for.
            max_size=job.cluster.engines or (None if layout.grows else layout.engines),
            max_tasks_in_flight_per_actor=2 * BLOCKS_PER_ENGINE,
            max_concurrent_calls_per_actor=BLOCKS_PER_ENGINE,
            enable_true_multi_threading=True,
        ),
        num_cpus=layout.cpus_per_engine,
        num_gpus=layout.gpus_per_engine or None,
        resources=dict(layout.engine_resources) or None,
        runtime_env=layout.engine_runtime_env,
    )
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
        raise RayscribeError(
            "run_failed",
            f"the run failed: {last_error_line(error)} (what is committed is kept; see the logs of Ray's session)",
        ) from error
