"""The plugin affects our engines only, and no engine process outlives the process that started it."""

import os
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import psutil
import pytest

from speech.granite import plugin

GRANITE = "GraniteSpeechForConditionalGeneration"
RESOLVE = textwrap.dedent(
    f"""
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    print(ModelRegistry.models["{GRANITE}"].load_model_cls().__qualname__)
    """
)


def resolved_class() -> str:
    """The class that vLLM has for Granite Speech in a process with this process's environment."""
    process = subprocess.run([sys.executable, "-c", RESOLVE], capture_output=True, text=True, check=True)
    return process.stdout.split()[-1]


@pytest.mark.engine
@pytest.mark.parametrize("allowed", [None, "lora_filesystem_resolver"])
def test_vllm_has_our_model_under_our_engine_only(allowed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if allowed is None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    with plugin.enabled():
        assert resolved_class() == "BatchInvariantGraniteSpeech"
    assert resolved_class() == GRANITE


@pytest.mark.parametrize(
    ("before", "within"),
    [(None, "rayscribe"), ("", "rayscribe"), ("a,b", "a,b,rayscribe"), ("rayscribe,a", "rayscribe,a")],
)
def test_the_users_allow_list_is_kept(before: str | None, within: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if before is None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VLLM_PLUGINS", before)
    monkeypatch.setattr(plugin, "entry_points", lambda group: [])
    with plugin.enabled():
        assert os.environ["VLLM_PLUGINS"] == within
    assert os.environ.get("VLLM_PLUGINS") == before


def test_without_an_allow_list_platform_plugins_stay_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr(plugin, "entry_points", lambda group: [EntryPoint("ascend", "vllm_ascend:register", group)])
    with plugin.enabled():
        assert os.environ["VLLM_PLUGINS"] == "ascend,rayscribe"


# A parent like the job's actor, with an engine process as vLLM starts it, which prints its pid.
PARENT = textwrap.dedent(
    """
    import multiprocessing, os, time
    from speech.granite.plugin import exit_with_parent

    def engine(ready):
        exit_with_parent()
        ready.send(os.getpid())
        time.sleep(600)

    if __name__ == "__main__":
        exit_with_parent()  # no effect: multiprocessing has not started this process
        here, there = multiprocessing.Pipe()
        multiprocessing.get_context("{method}").Process(target=engine, args=(there,)).start()
        print(here.recv(), flush=True)
        time.sleep(600)
    """
)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_an_engine_process_ends_when_its_parent_is_killed(method: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(method=method))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env={"PYTHONPATH": "."}) as parent:
        assert parent.stdout is not None
        engine = psutil.Process(int(parent.stdout.readline()))
        assert engine.ppid() == parent.pid
        parent.kill()
    try:
        engine.wait(timeout=10)
    except psutil.TimeoutExpired:
        engine.kill()
        raise
