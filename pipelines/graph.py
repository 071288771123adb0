"""The graph of the job: from the work list to receipts, through the actors of the two stages."""

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

# Recordings to a block of work, at most: what one Listener takes at a time, one engine call answers
# and one file commits. Larger blocks cost less scheduling; smaller ones lose less when a node dies.
MAX_RECORDINGS_PER_BLOCK = 32
# Blocks that an engine works on at once, so that the end of one overlaps with the middle of another.
BLOCKS_PER_ENGINE = 4


def recordings_per_block(to_do: int, listeners: int) -> int:
    """How many recordings make a block of work."""
    return max(1, min(MAX_RECORDINGS_PER_BLOCK, to_do // (8 * listeners)))


def receipts(
    job: Job, start: EngineStarter, storage: Storage, output: Output, blocks: list[Any], to_do: int, layout: Layout
) -> Iterator[pa.Table]:
    """Runs the graph and yields the receipts of what is committed, as it is committed.

    Args:
        job: its options, model and limits.
        start: what starts an engine.
        storage: opens the audio.
        output: takes the transcripts.
        blocks: references to the work list.
        to_do: its rows.
        layout: how many actors there are, and what each takes.

    Raises:
        RayscribeError: ``run_failed``.
    """
    configure_ray_data()
    # Begun anew if its node is lost: the counts are forgotten, which costs a poison recording another try.
    attempts = ray.remote(AttemptTracker).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    dataset = (
        ray.data.from_arrow_refs(blocks)
        # Small enough that every Listener has several blocks to its name, even of a short manifest.
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
            f"the run has failed: {last_error_line(error)} (what is done is kept; the logs of Ray's session say more)",
        ) from error
