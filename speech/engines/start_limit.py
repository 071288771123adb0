"""A time limit on the start of an engine: a download, a driver or a lock that hangs must not hang the run for ever."""

import threading
from concurrent.futures import Future

from speech.engines.base import Engine, EngineConfig, EngineStarter
from speech.errors import EngineDied
from speech.models.families import Family
from speech.processes import kill_children


def start_within_limit(start: EngineStarter, config: EngineConfig, family: Family) -> Engine:
    """Starts an engine, in ``config.engine_start_timeout_s`` at most.

    Raises:
        EngineDied: ``engine_start_timeout``. The thread that starts the engine cannot be stopped, so the process should
            exit; its child processes have been killed.
        RayscribeError: as of ``start``.
    """
    started: Future[Engine] = Future()

    def run() -> None:
        try:
            started.set_result(start(config, family))
        except BaseException as error:  # raised below, in the caller's thread
            started.set_exception(error)

    threading.Thread(target=run, daemon=True, name="engine-start").start()
    try:
        return started.result(config.engine_start_timeout_s)
    except TimeoutError as error:
        if started.done():  # raised by the engine, not by the wait
            raise
        kill_children()
        raise EngineDied(
            "engine_start_timeout",
            f"the {config.engine} engine has not loaded {config.model} in {config.engine_start_timeout_s:.0f} s "
            "(--engine-start-timeout-s)",
        ) from error
