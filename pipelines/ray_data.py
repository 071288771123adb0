"""What Ray Data is told, so that the driver of a million recordings takes no more memory than that of ten thousand."""

import logging
from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces import PhysicalOperator
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

# Between two operators. Each costs the driver 10 kB.
MAX_QUEUED_BLOCKS = 1_000


class LimitQueuedBlocks(BackpressurePolicy):
    """Holds an operator back while MOST_BLOCKS_WAITING of its blocks wait for the next.

    Ray Data's own policies count bytes, and the blocks of a work list have few: all 31,000 of a million
    recordings were cut at once, and the driver grew by 300 MB.
    """

    def can_add_input(self, op: "PhysicalOperator") -> bool:
        return not self._is_full(op)

    def max_task_output_bytes_to_read(self, op: "PhysicalOperator") -> int | None:
        return 0 if self._is_full(op) else None

    def _is_full(self, op: "PhysicalOperator") -> bool:
        waiting = self._topology[op].total_enqueued_output_blocks()
        waiting += sum(self._topology[after].total_enqueued_input_blocks() for after in op.output_dependencies)
        return waiting >= MAX_QUEUED_BLOCKS


class DropBlockStats(ExecutionCallback):
    """Lets go of the kilobyte that Ray Data keeps of every block that an operator has made.

    It is for a table of statistics (``Dataset.stats``) that is not printed, and came to 100 MB in a million
    recordings.
    """

    def on_execution_step(self, executor: "StreamingExecutor") -> None:
        for operator in executor._topology or ():
            for of_blocks in operator.get_stats().values():
                of_blocks.clear()  # the operator's own list


def configure_ray_data() -> None:
    """Sets the context of all graphs of this process."""
    context = DataContext.get_current()
    context.enable_progress_bars = False  # pipelines.progress draws the job, not Ray's operators
    context.execution_options.verbose_progress = False
    context.custom_execution_callback_classes = [DropBlockStats]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, LimitQueuedBlocks])
    logging.getLogger("ray.data").setLevel(logging.ERROR)
