"""The arithmetic of an engine on a CPU: float32, unless the user asks for another.

A CPU without matrix products of bfloat16 in hardware emulates them: on AVX2 a job with it was some 30 times slower than
with float32 (RTFx 0.3).
"""

import logging
from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# As /proc/cpuinfo names them: x86's AVX512-BF16 and AMX, Arm's BF16.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}

log = logging.getLogger(__name__)


def cpu_dtype(asked: Dtype) -> str:
    """What an engine on this CPU computes in; warns where that is emulated."""
    if warning := slow_dtype_warning(asked):
        log.warning(warning)
    return "float32" if asked == "auto" else asked


def slow_dtype_warning(asked: Dtype) -> str:
    """A sentence for who asks for bfloat16 on a CPU that has none; else an empty string."""
    if asked != "bfloat16" or has_bfloat16():
        return ""
    return "this CPU has no bfloat16 in hardware and emulates it, far slower than float32: leave out --dtype bfloat16"


def has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 in hardware. Where Linux does not describe it: yes."""
    described = cpu_info()
    return not described or not BFLOAT16_FLAGS.isdisjoint(described.split())


def cpu_info() -> str:
    """Linux's description of the processors; an empty string elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
