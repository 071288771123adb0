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

WATCHES = textwrap.dedent(
    """
    import threading
    from vllm.plugins import load_general_plugins

    def engine():
        load_general_plugins()
        print([thread.name for thread in threading.enumerate()])

    if __name__ == "__main__":
        import multiprocessing
        process = multiprocessing.get_context("fork").Process(target=engine)
        process.start()
        process.join()
    """
)


def threads_of_an_engine() -> str:
    """The threads of a process that loads vLLM's plugins, with this process's environment."""
    process = subprocess.run([sys.executable, "-c", WATCHES], capture_output=True, text=True, check=True)
    return process.stdout.splitlines()[-1]


@pytest.mark.engine
@pytest.mark.parametrize("allowed", [None, "lora_filesystem_resolver"])
def test_the_parent_is_watched_in_our_engines_only(allowed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if allowed is None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    with plugin.enabled():
        assert "parent-watch" in threads_of_an_engine()
    assert "parent-watch" not in threads_of_an_engine()


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
