"""What vLLM is asked for on a GPU, and that engines which share one start one after another. Runs without a GPU."""

import fcntl
from pathlib import Path

import pytest

from speech.engines.base import EngineConfig
from speech.engines.gpu_start import alone_on_gpu
from speech.engines.speculation import method_for
from speech.engines.vllm import VllmEngine
from speech.models.checkpoint import family_of

MODEL = "demo/model"


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")


def test_a_second_engine_waits_for_the_first(tmp_path: Path) -> None:
    with alone_on_gpu():
        [path] = tmp_path.iterdir()
        with path.open("w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_engines_on_other_gpus_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with alone_on_gpu():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
        with alone_on_gpu():
            pass


@pytest.mark.engine
def test_vllm_accepts_what_it_is_asked_for_on_a_gpu() -> None:
    from vllm import AsyncEngineArgs

    def arguments(config: EngineConfig) -> AsyncEngineArgs:
        engine = VllmEngine.__new__(VllmEngine)
        engine._family, engine._method = family_of(MODEL), method_for(config.speculation, family_of(MODEL), "vllm")
        return AsyncEngineArgs(**engine._arguments(config, on_cpu=False))

    full = arguments(EngineConfig(model=MODEL, speculation="off", concurrent_clips=1024, gpu_memory=0.45))
    assert (full.max_num_seqs, full.max_cudagraph_capture_size, full.gpu_memory_utilization) == (1024, 1024, 0.45)
    assert full.async_scheduling is None  # vLLM's own choice, which is yes
    assert full.speculative_config is None
    # vLLM refuses drafts of a class of ours with asynchronous scheduling, and turns it off by itself.
    drafted = arguments(EngineConfig(model=MODEL, speculation="auto", concurrent_clips=64))
    assert drafted.async_scheduling is None
    assert drafted.max_num_batched_tokens is not None
    assert full.max_num_batched_tokens is not None
    assert drafted.max_num_batched_tokens < full.max_num_batched_tokens
    many = arguments(EngineConfig(model=MODEL, speculation="ctc", concurrent_clips=4096))
    assert many.max_num_batched_tokens == 4096  # vLLM refuses fewer tokens than clips
