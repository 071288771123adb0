"""GPUs: those of this machine, and what their memory holds: vLLM's share, and clips in its KV cache.

The sizes are those of Granite 4.0 1B Speech in bfloat16, 4.63 GB of weights. vLLM itself holds back clips for which its
KV cache has no room, so a larger model is slower with these numbers, and does not fail.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass

from speech.engines.base import EngineConfig

# By Ray's label ray.io/accelerator-type, in GiB as nvidia-smi reports it. Ray does not tell the two sizes of the A100
# (and of the V100) apart unless the node's owner does: the smaller.
MEMORY_GIB = {
    "T4": 15.0,
    "V100": 16.0,
    "P100": 16.0,
    "L4": 22.5,
    "A10G": 22.5,
    "A100": 40.0,
    "A100-40G": 40.0,
    "A100-80G": 80.0,
    "L40S": 45.0,
    "H100": 79.6,
    "H20": 95.6,
    "H200": 140.4,
    "B200": 178.0,
}

# Granite's encoder and projector (0.7 B parameters), the activations of one pass, a second CUDA context.
FRONT_END_GIB = 2.5
# The language model's weights, and what vLLM measures of its activations.
LANGUAGE_MODEL_GIB = 4.7
# 40 layers, keys and values of 4 heads of 128 in bfloat16: 80 KiB a token; 30 s are 300 tokens of audio, and as many of
# prompt and text. And a row of logits of the vocabulary: in bfloat16, in float32, and their logarithms.
CLIP_GIB = 600 * 80 / (1 << 20) + 100_353 * 10 / (1 << 30)
# The default of speech.engines.base.EngineConfig.
MAX_GPU_MEMORY = 0.9
# What vLLM itself decodes at once on GPUs of 70 GiB and more (0.32). The fixed part of a step, weights to read and
# kernels to launch, takes milliseconds, keys and values of a clip about 5 microseconds: more clips gain little.
MAX_CONCURRENT_CLIPS = 1024
# Clips at once from which a job's engine has no drafts under ``--speculation auto``. The fixed part of a step costs as
# much as 256 tokens or so (speech.granite.draft_length, not measured yet): with as many clips an accepted token saves
# no more than one token's arithmetic, and without drafts vLLM schedules asynchronously and takes longer steps.
UNDRAFTED_CLIPS = 256
MIN_GPU_MEMORY = 0.05


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine. ``name``: NVIDIA's, "NVIDIA H100 80GB HBM3"."""

    name: str
    memory_gib: float
    driver: str

    @property
    def accelerator(self) -> str:
        """Ray's name of the kind, "H100"; empty where it is not known here."""
        return next((word for word in re.split(r"[\s-]+", self.name) if word in MEMORY_GIB), "")


def find_gpus() -> list[Gpu]:
    """Every NVIDIA GPU of this machine."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # the tool is installed and the driver is not
        return []
    fields = [[field.strip() for field in line.split(",")] for line in listed.splitlines()]
    return [Gpu(each[0], float(each[1]) / 1024, each[2]) for each in fields if len(each) == 3 and each[1].isdigit()]


def fit_engine(
    config: EngineConfig, engines_per_gpu: int, memory_gib: float | None, *, bulk: bool = False
) -> EngineConfig:
    """vLLM's settings, with what its GPU has room for where the user has set nothing. Other engines' are as they are.

    Args:
        config: the user's.
        engines_per_gpu: engines that share the GPU; 0: on a CPU.
        memory_gib: the GPU's memory in GiB; None if it is not known.
        bulk: whether the engine has as many clips as it can decode at once, all the time.
    """
    if not engines_per_gpu or config.engine != "vllm":
        return config
    fitted: dict[str, float | int] = {"gpu_memory": MAX_GPU_MEMORY / engines_per_gpu}
    if memory_gib is not None:
        free = min(MAX_GPU_MEMORY, 1 - engines_per_gpu * FRONT_END_GIB / memory_gib)
        share = max(MIN_GPU_MEMORY, free / engines_per_gpu)
        clips = int((share * memory_gib - LANGUAGE_MODEL_GIB) / CLIP_GIB)
        fitted = {"gpu_memory": share, "concurrent_clips": max(1, min(MAX_CONCURRENT_CLIPS, clips))}
    unset = {name: value for name, value in fitted.items() if name not in config.model_fields_set}
    config = config.model_copy(update=unset)
    if bulk and config.speculation == "auto" and config.concurrent_clips >= UNDRAFTED_CLIPS:
        return config.model_copy(update={"speculation": "off"})
    return config
