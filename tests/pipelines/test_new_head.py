"""The head of a cluster is lost, and with it the driver: the same command on a new one goes on."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.ports import free_port
from tests.pipelines.jobs import answers_in, make_calls, manifest_of
from tests.pipelines.raylets import decoded_file, flag_of, kill_all, placed, start_driver

CALLS = 40
HEAD = ("--num-cpus=0", "--include-dashboard=false", "--min-worker-port=0", "--max-worker-port=0")
FIRST = 16  # that are transcribed before the head is lost

pytestmark = [pytest.mark.ray, pytest.mark.long]


@contextlib.contextmanager
def ray_started(*options: str) -> Iterator["subprocess.Popen[str]"]:
    """A node of Ray's by its command, as Kubernetes' pods run it. Whatever is left of it is killed."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        shown = ""
        while "Ray runtime started" not in shown:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, shown
            shown += line
        yield process
    finally:
        kill_all(process)


@contextlib.contextmanager
def cluster(port: int) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The address and the head of a head without work and a worker."""
    from ray.util import get_node_ip_address

    address = f"{get_node_ip_address()}:{port}"
    with (
        ray_started("--head", f"--port={port}", *HEAD, f"--ray-client-server-port={free_port()}") as head,
        ray_started(f"--address={address}", "--num-cpus=4", "--num-gpus=1"),
    ):
        yield address, head


def test_the_same_command_on_a_new_head_goes_on(tmp_path: Path) -> None:
    make_calls(tmp_path)
    rows: list[dict[str, object]] = [{"audio": "agent.flac", "id": f"call-{number}"} for number in range(CALLS)]
    output = tmp_path / "out"
    settings = {"manifest": manifest_of(tmp_path, *rows), "output": str(output), "listeners": 1}
    flag = flag_of(str(output))
    flag.write_text(str(FIRST))
    with contextlib.ExitStack() as stack:
        address, head = stack.enter_context(cluster(free_port()))
        driver = start_driver(address, "run_in_turns", **settings)
        while not [*output.glob("transcripts/status=ok/*.parquet")]:
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.1)
        for lost in (driver, head):
            kill_all(lost)
        driver.communicate()
        before = {answer["recording_id"] for answer in answers_in(output)}
        assert 0 < len(before) <= FIRST
        flag.write_text(str(CALLS))
        # The first cluster's worker stays, as Kubernetes' pods do for a while.
        address, _ = stack.enter_context(cluster(free_port()))
        began = time.monotonic()
        ended = placed(start_driver(address, "run_elsewhere", **settings))
        assert "reading what is done" in ended.shown
        assert time.monotonic() - began > 25  # the lease of a machine that cannot be asked has to expire
    answers = answers_in(output)
    ids = sorted(f"call-{number}" for number in range(CALLS))
    assert sorted(answer["recording_id"] for answer in answers) == ids
    assert {answer["status"] for answer in answers} == {"ok"}
    assert all(answer["text"].startswith(f"{answer['recording_id']}:") for answer in answers)
    decoded = decoded_file(flag).read_text().split()
    assert all(decoded.count(each) == 1 for each in before)
