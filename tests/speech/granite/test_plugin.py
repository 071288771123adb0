"""No engine process outlives the process that started it."""

import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

# A holder as the job's actor is, and an engine process as vLLM starts it; the engine says its number.
HOLDER = textwrap.dedent(
    """
    import multiprocessing, os, time
    from speech.granite.plugin import exit_with_parent

    def engine(ready):
        exit_with_parent()
        ready.send(os.getpid())
        time.sleep(600)

    if __name__ == "__main__":
        exit_with_parent()  # of the user's own process: nobody is watched
        here, there = multiprocessing.Pipe()
        multiprocessing.get_context("{method}").Process(target=engine, args=(there,)).start()
        print(here.recv(), flush=True)
        time.sleep(600)
    """
)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_an_engine_process_ends_when_its_holder_is_killed(method: str, tmp_path: Path) -> None:
    script = tmp_path / "holder.py"
    script.write_text(HOLDER.format(method=method))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env={"PYTHONPATH": "."}) as holder:
        assert holder.stdout is not None
        engine = psutil.Process(int(holder.stdout.readline()))
        assert engine.ppid() == holder.pid
        holder.kill()
    try:
        engine.wait(timeout=10)
    except psutil.TimeoutExpired:
        engine.kill()
        raise
