"""The settings of Ray Data's context for the job."""

import logging

from ray.data import DataContext

from cluster.ray_internals import set_policies


def configure_ray_data() -> None:
    """Sets the context of all datasets of this process.

    The driver of a million recordings takes no more memory than that of ten thousand (``set_policies``).
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False  # pipelines.progress shows the job, not Ray's operators
    context.execution_options.verbose_progress = False
    # Ray Data would fail a run that has waited half an hour for machines. Recordings, clips and engines that hang have
    # time limits of their own.
    context.execution_no_progress_timeout_s = -1
    set_policies(context)
    log = logging.getLogger("ray.data")
    log.setLevel(logging.ERROR)
    for handler in [*log.handlers]:
        # Not to the terminal: an actor that cannot start comes with some 90 lines. The log in Ray's session has them.
        if isinstance(handler, logging.StreamHandler):
            log.removeHandler(handler)
