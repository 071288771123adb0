"""Errors of PyTorch after which a process cannot use its GPU any more."""

import sys

from speech.errors import EngineDied


def check_gpu(error: Exception) -> None:
    """Returns if the process can go on after ``error``, as it can for want of memory.

    After an illegal access, a failed assertion of a kernel or an uncorrectable error of the memory, every later call
    fails too: CUDA's context is lost (CUDA Runtime API, cudaErrorIllegalAddress and others: "the process must be
    terminated and relaunched"). PyTorch raises all errors of a device as AcceleratorError, and OutOfMemoryError for
    want of memory.

    Raises:
        EngineDied: ``engine_died``.
    """
    torch = sys.modules.get("torch")  # if it is not loaded, the error is not its own
    if torch is not None and isinstance(error, torch.AcceleratorError):
        first = str(error).partition("\n")[0]
        raise EngineDied("engine_died", f"the GPU cannot be used any more by this process: {first}") from error
