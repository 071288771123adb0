"""The graph of the job as Ray Data runs it, and what Ray Data is told for jobs of a million recordings."""

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.nodes import Layout
from cluster.session import why
from cluster.storage import Storage
from pipelines.attempts import Attempts
from pipelines.job import Job
from pipelines.output import Output
from pipelines.stages import Listen, Transcribe
from speech.engine import EngineStarter
from speech.errors import RayscribeError

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

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
    # Ray Data holds an operator back only once half the object store is in use, however few bytes its blocks
    # have: the work list of a million recordings was cut into 31,000 blocks at once, and the driver, which
    # keeps 10 kB for each that waits, grew by 300 MB. At 0 it is held back while what follows has enough.
    os.environ.setdefault("RAY_DATA_DOWNSTREAM_CAPACITY_OBJECT_STORE_BUDGET_UTIL_THRESHOLD", "0")
    import ray
    from ray.data import ActorPoolStrategy

    _tell_ray_data()
    runtime_env = {"env_vars": {"OMP_NUM_THREADS": str(layout.threads_per_engine)}} if layout.threads_per_engine else {}
    # Begun anew if its node is lost: the counts are forgotten, which costs a poison recording another try.
    attempts = ray.remote(Attempts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    dataset = (
        ray.data.from_arrow_refs(blocks)
        # Small enough that every Listener has several blocks to its name, even of a short manifest.
        .repartition(target_num_rows_per_block=recordings_per_block(to_do, layout.listeners))
        .map_batches(
            Listen,
            fn_constructor_args=(job.options, job.engine_config.model, storage, attempts, job.listen_timeout_s),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=layout.listeners),
            num_cpus=1,
        )
        .map_batches(
            Transcribe,
            fn_constructor_args=(job.engine_config, start, attempts, job.clip_timeout_s, output),
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
            runtime_env=runtime_env,
        )
    )
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
        raise RayscribeError(
            "run_failed",
            f"the run has failed: {why(error)} (what is done is kept; the logs of Ray's session say more)",
        ) from error


def _tell_ray_data() -> None:
    import ray
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class ForgetBlocks(ExecutionCallback):
        """Lets go of the kilobyte that Ray Data keeps of every block that an operator has made.

        It is for a table of statistics (``Dataset.stats``) that is not printed, and was 100 MB after a million
        recordings.
        """

        def on_execution_step(self, executor: "StreamingExecutor") -> None:
            for operator in executor._topology or ():
                for of_blocks in operator.get_stats().values():
                    of_blocks.clear()  # the operator's own list

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # pipelines.progress draws the job, not Ray's operators
    context.execution_options.verbose_progress = False
    context.custom_execution_callback_classes = [ForgetBlocks]
    logging.getLogger("ray.data").setLevel(logging.ERROR)
