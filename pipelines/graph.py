"""The Ray Data dataset of the job: from the work list, through the actors of the two stages, to receipts."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from cluster.nodes import Layout
from cluster.session import last_error_line
from pipelines.job import Job
from pipelines.output import Output
from pipelines.poison import AttemptTracker
from pipelines.ray_data import configure_ray_data
from pipelines.stages import Listen, Transcribe
from speech.engines.base import EngineStarter
from speech.errors import RayscribeError
from storage.filesystem import Storage

# Recordings in a block, at most: the input of one task of a Listener and of one call of an engine, and one file.
# Larger blocks cost less scheduling; smaller ones lose less when a node dies.
MAX_RECORDINGS_PER_BLOCK = 32
# Blocks in flight in one engine, so that the last clips of one are batched with others.
BLOCKS_PER_ENGINE = 4


def recordings_per_block(to_do: int, listeners: int) -> int:
    """How many recordings make a block."""
    return max(1, min(MAX_RECORDINGS_PER_BLOCK, to_do // (8 * listeners)))


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
    dataset = (
        ray.data.from_arrow_refs(blocks)
        # Small enough that every Listener has several blocks, even of a short manifest.
        .repartition(target_num_rows_per_block=recordings_per_block(to_do, layout.listeners))
        .map_batches(
            Listen,
            fn_constructor_args=(job.options, job.engine_config, storage, attempts, job.listen_timeout_s),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=layout.listeners),
            num_cpus=1,
        )
        .map_batches(
            Transcribe,
            fn_constructor_args=(job.engine_config, start, attempts, output),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=layout.engines,
                max_tasks_in_flight_per_actor=2 * BLOCKS_PER_ENGINE,
                max_concurrent_calls_per_actor=BLOCKS_PER_ENGINE,
                enable_true_multi_threading=True,
            ),
            num_cpus=layout.cpus_per_engine,
            num_gpus=layout.gpus_per_engine or None,
            runtime_env=layout.engine_runtime_env,
        )
    )
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
        raise RayscribeError(
            "run_failed",
            f"the run failed: {last_error_line(error)} (what is committed is kept; see the logs of Ray's session)",
        ) from error
