"""GPUs, as nvidia-smi lists them, and what an engine takes of their memory."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from cluster.gpus import MEMORY_GIB, Gpu, find_gpus, fit_engine
from pipelines.job import Job
from serve.settings import ServeSettings
from speech.engines.base import EngineConfig


def test_gpus_come_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 570.1'\n")
    tool.chmod(0o755)
    assert find_gpus() == [Gpu("NVIDIA H200", 143771 / 1024, "570.1")]
    tool.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert find_gpus() == []


@pytest.mark.parametrize(
    ("name", "accelerator"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", ""),
    ],
)
def test_kinds_have_ray_s_names(name: str, accelerator: str) -> None:
    assert Gpu(name, 16.0, "570.1").accelerator == accelerator


@pytest.mark.parametrize(
    ("memory_gib", "engines", "clips", "share"),
    [
        (MEMORY_GIB["T4"], 1, 167, 0.833),
        (MEMORY_GIB["L4"], 1, 328, 0.889),
        (MEMORY_GIB["A100"], 1, 670, 0.9),
        (MEMORY_GIB["H100"], 1, 1024, 0.9),
        (MEMORY_GIB["H200"], 2, 1024, 0.45),
        (MEMORY_GIB["L4"], 2, 87, 0.389),
        (MEMORY_GIB["H100"], 4, 272, 0.219),
        (None, 2, 64, 0.45),
    ],
)
def test_an_engine_fits_its_gpu(memory_gib: float | None, engines: int, clips: int, share: float) -> None:
    fitted = fit_engine(EngineConfig(), engines, memory_gib)
    assert fitted.concurrent_clips == pytest.approx(clips, abs=2)
    assert fitted.gpu_memory == pytest.approx(share, abs=0.002)
    assert engines * fitted.gpu_memory <= 0.9  # the front ends have the rest
    assert fitted.speculation == "auto"


def test_what_the_user_sets_of_an_engine_wins() -> None:
    config = EngineConfig(concurrent_clips=7, gpu_memory=0.5)
    assert fit_engine(config, 1, 15.0) == config


@pytest.mark.parametrize("given", [{"model": "openai/whisper-small"}, {"models": [{"model": "openai/whisper-small"}]}])
def test_settings_of_a_face_leave_to_the_gpu_what_the_user_has_not_set(given: dict[str, Any]) -> None:
    """On the way to the actor, too, which receives them pickled."""
    job = Job.from_settings({"manifest": "calls", "output": "out", **given})
    endpoint = ServeSettings.from_settings(given)
    for rule in (job.rules[0], endpoint.rules[0]):
        fitted = fit_engine(pickle.loads(pickle.dumps(rule)), 1, MEMORY_GIB["T4"])
        expected = fit_engine(EngineConfig(), 1, MEMORY_GIB["T4"])
        assert (fitted.concurrent_clips, fitted.gpu_memory) == (expected.concurrent_clips, expected.gpu_memory)
        assert fitted.concurrent_clips > EngineConfig().concurrent_clips


def test_other_engines_are_as_the_user_has_them() -> None:
    assert fit_engine(EngineConfig(), 0, None) == EngineConfig()  # on a CPU
    assert fit_engine(EngineConfig(engine="transformers"), 1, 80.0) == EngineConfig(engine="transformers")


@pytest.mark.parametrize(
    ("given", "memory_gib", "bulk", "speculation"),
    [
        ({}, MEMORY_GIB["H200"], True, "off"),
        ({}, MEMORY_GIB["H200"], False, "auto"),
        ({}, MEMORY_GIB["T4"], True, "auto"),  # fewer clips at once
        ({"concurrent_clips": 64}, MEMORY_GIB["H200"], True, "auto"),
        ({"speculation": "ctc"}, MEMORY_GIB["H200"], True, "ctc"),
    ],
)
def test_a_full_batch_of_a_job_has_no_drafts(
    given: dict[str, Any], memory_gib: float, bulk: bool, speculation: str
) -> None:
    assert fit_engine(EngineConfig(**given), 1, memory_gib, bulk=bulk).speculation == speculation
