"""One vLLM engine at a time starts on a GPU that several share.

vLLM takes what its GPU's free memory loses during the start as its own use, and makes its KV cache smaller by that
(``memory_profiling``, vLLM 0.32): also what another engine allocates meanwhile, which may leave it none.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def alone_on_gpu() -> Iterator[None]:
    """Waits until no other process of this user is within, on the GPUs that this process sees."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "all").replace("/", "-")
    with Path(tempfile.gettempdir(), f"rayscribe-{os.getuid()}-gpu-{gpus}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: processes forked meanwhile hold the file too
