"""The adapter to vLLM's internals: all that it uses is in the installed vLLM, and its error names what is not."""

from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest
import torch
import vllm
from vllm.config import set_current_vllm_config
from vllm.distributed import (
    cleanup_dist_env_and_memory,
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.worker import gpu_input_batch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from speech.granite import runner as runner_module
from speech.granite.runner import MADE_FOR, VllmMismatchError, check_runner

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def vllm_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """vLLM's own model runner for the demo checkpoint with our drafter, before any weights are loaded."""
    if not current_platform.is_cpu():
        pytest.skip("vLLM's model runner for CPUs needs its CPU build")
    arguments = EngineArgs(
        model="demo/model",
        dtype="float32",
        speculative_config={
            "method": "custom_class",
            "model": "speech.granite.drafter.CtcDrafter",
            "num_speculative_tokens": 4,
        },
    )
    config = arguments.create_engine_config()
    rendezvous = f"file://{tmp_path_factory.mktemp('rendezvous') / 'store'}"
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, rendezvous, 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        yield CPUModelRunner(config, torch.device("cpu"))
    cleanup_dist_env_and_memory()


def test_vllms_model_runner_has_all_that_is_used(vllm_runner: Any) -> None:
    check_runner(vllm_runner)


def test_the_error_names_what_is_missing_and_the_versions(vllm_runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(vllm_runner, "requests")
    monkeypatch.setattr(vllm_runner, "max_model_len", "4096")
    with pytest.raises(VllmMismatchError) as mismatch:
        check_runner(vllm_runner)
    message = str(mismatch.value)
    for word in (
        f"vLLM {vllm.__version__} ",
        f"made for vLLM {MADE_FOR}",
        "requests",
        "max_model_len (int, not str)",
    ):
        assert word in message
    assert "input_batch" not in message


def test_a_module_without_a_class_that_is_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(gpu_input_batch, "CachedRequestState")
    spec = spec_from_file_location("runner_of_another_vllm", runner_module.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(RuntimeError, match=r"'CachedRequestState' .*made for vLLM 0\.32"):
        spec.loader.exec_module(module_from_spec(spec))
