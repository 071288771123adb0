"""vLLM plugin: ends the processes of our engines when the process that started them is gone.

vLLM calls ``register`` through the ``vllm.general_plugins`` entry point (see pyproject.toml) in its engine and worker
processes. An entry point is seen by every vLLM of the environment, and by default all plugins are loaded; so
``register`` does nothing unless ``VLLM_PLUGINS``, vLLM's allow-list of plugins, names ours. Our engine sets it
(``enabled``) while it starts; any other vLLM of the environment stays as it was.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points

NAME = "rayscribe"  # of the entry point
ALLOW_LIST = "VLLM_PLUGINS"  # names with commas between; vLLM loads all plugins if it is unset


@contextmanager
def enabled() -> Iterator[None]:
    """Adds our plugin to the allow-list for the processes that are started meanwhile.

    A list of the user's own keeps its names. Without one vLLM would load whatever is installed; we allow the platform
    plugins alone, which support hardware that vLLM itself does not.
    """
    before = os.environ.get(ALLOW_LIST)
    names = [plugin.name for plugin in entry_points(group="vllm.platform_plugins")]
    if before is not None:
        names = [name for name in before.split(",") if name]
    os.environ[ALLOW_LIST] = ",".join(dict.fromkeys([*names, NAME]))
    try:
        yield
    finally:
        if before is None:
            del os.environ[ALLOW_LIST]
        else:
            os.environ[ALLOW_LIST] = before


def register() -> None:
    """Watches the parent process, in our engines only."""
    if NAME in os.environ.get(ALLOW_LIST, "").split(","):
        exit_with_parent()


def exit_with_parent() -> None:
    """Ends this process as soon as its parent process has ended, for whatever reason.

    vLLM's engine core waits for requests and does not notice that its client is gone. After a SIGKILL of the actor
    that holds the engine, or of the whole job, it would keep its memory, and its GPU, for ever. A process that
    ``multiprocessing`` did not start has no parent to watch: it is the user's own.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent,), daemon=True, name="parent-watch").start()


def _wait_and_exit(parent: "multiprocessing.process.BaseProcess") -> None:
    parent.join()  # returns at the end of a pipe, which the kernel closes
    os._exit(1)  # without clean-up: that would send messages to the dead parent
