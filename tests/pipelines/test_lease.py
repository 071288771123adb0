"""The lease on an output folder, on a disk and on S3."""

import json
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.lease import Lease, read_lease
from speech.errors import RayscribeError, UsageError
from storage.filesystem import Storage
from tests.conftest import S3


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Storage]:
    if request.param == "disk":
        return str(tmp_path), Storage()
    s3: S3 = request.getfixturevalue("s3")
    return f"{s3.bucket}/out", Storage(s3.options)


def test_one_holder_at_a_time(place: tuple[str, Storage]) -> None:
    output, storage = place
    with Lease(output, storage, renew_s=0.1):
        with pytest.raises(UsageError) as refused, Lease(output, storage, renew_s=0.1):
            pytest.fail("two hold it")
        assert refused.value.code == "output_in_use"
    assert read_lease(output, storage) is None
    with Lease(output, storage):
        assert read_lease(output, storage)


def test_a_suspended_holder_stops_when_another_has_taken_over(place: tuple[str, Storage]) -> None:
    output, storage = place

    def work() -> None:
        with Lease(output, storage, renew_s=0.05) as lease:
            lease.check()
            storage.write_bytes(f"{output}/lease/00000002.json", b'{"run": "another", "host": "there", "pid": 7}')
            for _ in range(1000):
                lease.check()
                time.sleep(0.01)

    with pytest.raises(RayscribeError, match="process 7 on there") as stopped:
        work()
    assert stopped.value.code == "output_taken"
    found = read_lease(output, storage)
    assert found is not None
    assert found["run"] == "another"  # neither renewal nor release has overwritten it


def leave_behind(output: str, storage: Storage, **holder: object) -> None:
    """What a holder that was killed leaves."""
    text = json.dumps({"run": "gone", "renewals": 3, **holder})
    storage.write_bytes(f"{output}/lease/00000007.json", text.encode())


HOLD_AND_DIE = """
import os, pickle, sys
from pipelines.lease import Lease
output, storage = pickle.loads(sys.stdin.buffer.read())
with Lease(output, storage):
    os._exit(0)
"""


def test_the_lease_of_a_dead_process_here_is_taken_over_at_once(place: tuple[str, Storage]) -> None:
    output, storage = place
    subprocess.run([sys.executable, "-c", HOLD_AND_DIE], input=pickle.dumps(place), check=True)
    left = read_lease(output, storage)
    assert left is not None
    with Lease(output, storage, expire_s=3600):
        found = read_lease(output, storage)
        assert found is not None
        assert found["run"] != left["run"]


def test_setting_the_clock_ends_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts the start of a process from the boot, whose time of day changes with the clock."""
    with Lease(str(tmp_path), Storage(), renew_s=0.1) as held:
        boot_time = psutil.boot_time()
        monkeypatch.setattr("psutil._psplatform.boot_time", lambda: boot_time + 3600)
        with pytest.raises(UsageError) as refused, Lease(str(tmp_path), Storage(), renew_s=0.1):
            pytest.fail("two hold it")
        assert refused.value.code == "output_in_use"
        held.verify()


def test_a_process_of_another_machine_with_the_same_name_may_be_alive(tmp_path: Path) -> None:
    leave_behind(str(tmp_path), Storage(), host=socket.gethostname(), pid=1 << 22, process_ids_of="another boot")
    start = time.monotonic()
    with Lease(str(tmp_path), Storage(), renew_s=0.1, expire_s=0.5):
        assert time.monotonic() - start >= 0.5


def test_the_lease_of_a_lost_machine_is_taken_over_when_it_expires(place: tuple[str, Storage]) -> None:
    output, storage = place
    leave_behind(output, storage, host="another-machine", pid=1)
    with Lease(output, storage, renew_s=0.1, expire_s=0.5):
        found = read_lease(output, storage)
        assert found is not None
        assert found["run"] != "gone"


def test_of_two_newcomers_one_takes_over(place: tuple[str, Storage], monkeypatch: pytest.MonkeyPatch) -> None:
    output, storage = place
    leave_behind(output, storage, host="another-machine", pid=1)
    first, second = (Lease(output, storage, renew_s=0.1, expire_s=0.3) for _ in range(2))
    monkeypatch.setattr(first, "_await_expiry", lambda: 7)
    monkeypatch.setattr(second, "_await_expiry", lambda: 7)  # both have seen the seventh expire
    with first:
        with pytest.raises(UsageError) as refused, second:
            pytest.fail("two hold it")
        assert refused.value.code == "output_in_use"
        first.verify()


def test_a_slow_read_does_not_take_a_live_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = str(tmp_path)
    storage = Storage()
    with Lease(output, storage, renew_s=0.05) as held:
        slow = Storage()
        read = slow.read_bytes
        reads: list[str] = []

        def read_slowly(uri: str) -> bytes | None:
            data = read(uri)
            reads.append(uri)
            if len(reads) == 2:  # longer than the newcomer waits, and several renewals
                renewed = data
                while renewed == data:
                    renewed = read(uri)
                expired.append(True)
                return renewed
            return data

        expired: list[bool] = []
        real = time.monotonic
        monkeypatch.setattr(slow, "read_bytes", read_slowly)
        monkeypatch.setattr(time, "monotonic", lambda: real() + 3600 * len(expired))
        with pytest.raises(UsageError) as refused, Lease(output, slow, renew_s=0.05, expire_s=0.5):
            pytest.fail("two hold it")
        assert refused.value.code == "output_in_use"
        held.verify()
