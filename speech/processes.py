"""Child processes of this process."""

import contextlib

import psutil


def kill_children() -> None:
    """Kills all processes that this one has started, and theirs: a stuck engine holds its GPU."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
