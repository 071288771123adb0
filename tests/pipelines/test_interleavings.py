"""Drivers, workers and kills in every order of their storage operations: no recording is lost, and none is kept twice.

A hypothesis state machine runs several processes on one output: runs that commit blocks and finish, cleaners that
start and find nothing to do, and workers whose driver is dead. Each stops before every operation on the store, and the
machine decides which goes on, or is killed there. No lease is held: what keeps recordings safe must not depend on it.
"""

import itertools
import os
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipelines.output import STATUSES, Output
from speech.errors import AudioError, RayscribeError
from speech.recording import Recording
from speech.transcript import Transcript
from storage.filesystem import Storage
from tests.conftest import S3

IDS = "abcd"
EXAMPLES = int(os.environ.get("RAYSCRIBE_EXAMPLES", "40"))  # sequences of steps that are tried
STEPS = Counter[str]()  # over all examples
NAMES = random.Random()  # of files and runs: an example must be the same when it is run again


class Killed(BaseException):
    """Ends a process before its next operation."""


class Gate:
    """Lets one thread run from one operation on the store to the next, and no further."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._resume, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self.ended = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()
        self._paused.acquire()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            self.wait()
            work()
        except (Killed, RayscribeError):  # a driver that another has replaced stops with output_taken
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self._paused.release()

    def wait(self) -> None:
        """Called by the thread before each operation."""
        self._paused.release()
        self._resume.acquire()
        if self._killed:
            raise Killed

    def step(self, kill: bool = False) -> None:
        self._killed = kill
        self._resume.release()
        self._paused.acquire()
        if self.error is not None:
            raise self.error


class MemoryStorage(Storage):
    """A store in memory, whose every operation is atomic and waits for the gate of its process."""

    def __init__(self, files: dict[str, bytes], wait: Callable[[], None]) -> None:
        super().__init__()
        self._files, self._wait = files, wait

    def list(self, uri: str) -> list[str]:
        return [*self.sizes(uri)]

    def sizes(self, folder: str) -> dict[str, int]:
        self._wait()
        return {uri: len(data) for uri, data in sorted(self._files.items()) if uri.startswith(f"{folder}/")}

    def read_bytes(self, uri: str) -> bytes | None:
        self._wait()
        return self._files.get(uri)

    def write_bytes(self, uri: str, data: bytes) -> None:
        self._wait()
        self._files[uri] = data

    def create_bytes(self, uri: str, data: bytes) -> bool:
        self._wait()
        return self._files.setdefault(uri, data) is data

    def remove(self, uri: str) -> None:
        self._wait()
        self._files.pop(uri, None)


class GatedStorage(Storage):
    """A real store, whose every operation waits for the gate of its process."""

    def __init__(self, options: dict[str, Any], wait: Callable[[], None]) -> None:
        super().__init__(options)
        self._wait = wait

    def list(self, uri: str) -> list[str]:
        self._wait()
        return super().list(uri)

    def sizes(self, folder: str) -> dict[str, int]:
        self._wait()
        return super().sizes(folder)

    def read_bytes(self, uri: str) -> bytes | None:
        self._wait()
        return super().read_bytes(uri)

    def write_bytes(self, uri: str, data: bytes) -> None:
        self._wait()
        super().write_bytes(uri, data)

    def create_bytes(self, uri: str, data: bytes) -> bool:
        self._wait()
        return super().create_bytes(uri, data)

    def remove(self, uri: str) -> None:
        self._wait()
        super().remove(uri)


class UnfinishedOutput(Output):
    """An output as those see it who read all files in the folder, valid or not."""

    def report(self) -> None:
        return None


class RunsInOrder:
    """A ThreadPoolExecutor of no threads: operations of one process come one after another."""

    def __init__(self, _: int) -> None:
        pass

    def __enter__(self) -> "RunsInOrder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, call: Callable[[Any], Any], items: Any) -> Iterator[Any]:
        return iter([call(item) for item in items])

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        done = Future[Any]()
        done.set_result(call(*args))
        return done


def row(recording_id: str, failed: bool, attempt: int) -> dict[str, Any]:
    error = AudioError("not_found", "gone") if failed else None
    recording = Recording(id=recording_id, audio="a.wav")
    return Transcript(recording, "model", text="", error=error, attempt=attempt).to_row()


def rows_in(output: Output) -> dict[str, list[tuple[str, int]]]:
    """Status and attempt of every row of an output, by recording."""
    found: dict[str, list[tuple[str, int]]] = {}
    for status in STATUSES:
        for batch in output.batches(status, ["recording_id", "attempt"]):
            for cells in batch.to_pylist():
                found.setdefault(cells["recording_id"], []).append((status, cells["attempt"]))
    return found


class Machine(RuleBasedStateMachine):
    """Invariants: what a receipt has reported is never lost; a finished output has each recording once."""

    def __init__(self) -> None:
        super().__init__()
        NAMES.seed(0)
        self.files: dict[str, bytes] = {}
        self.uri = "s3://bucket/out"
        self.gates: list[Gate] = []
        self.reported: set[str] = set()  # recordings that a driver has a receipt of

    def storage(self, wait: Callable[[], None] = lambda: None) -> Storage:
        return MemoryStorage(self.files, wait)

    def start(self, work: Callable[[Output], object]) -> None:
        gates: list[Gate] = []
        output = Output(self.uri, self.storage(lambda: gates[0].wait()))
        gates.append(Gate(lambda: work(output)))
        self.gates.append(gates[0])

    @property
    def running(self) -> list[Gate]:
        return [gate for gate in self.gates if not gate.ended]

    @initialize(orphan=st.booleans(), failed=st.booleans(), runs=st.integers(1, 2))
    def start_together(self, orphan: bool, failed: bool, runs: int) -> None:
        """Two or three processes, none of which has done anything."""
        for _ in range(runs):
            self.start_run(lost=failed, failures=set(), first=failed)
        if orphan:
            self.start_orphan(block={"a", "c"}, failed=failed)

    @rule(lost=st.booleans(), failures=st.sets(st.sampled_from(IDS)), first=st.booleans())
    def start_run(self, lost: bool, failures: set[str], first: bool) -> None:
        """A run of all that is not yet ok; if ``lost``, each block was also committed by a worker that was lost."""
        if len(self.running) == 3:
            return

        def work(output: Output) -> None:
            contents = output.deduplicate()
            attempts = {name: number + 1 for name, number in contents.attempts["failed"].items()}
            todo = [name for name in IDS if name not in contents.attempts["ok"]]
            if not todo and output.report():
                return
            contents = output.begin(contents)
            written: set[str] = set()
            for block in (todo[:2], todo[2:]):
                rows = [row(name, name in failures, attempts.get(name, 1)) for name in block]
                if lost:
                    output.commit([row(name, first, attempts.get(name, 1)) for name in block])
                written |= set(output.commit(rows))
                self.reported |= set(block)
            output.consolidate(contents, written, superseded=bool(attempts))
            output.finish({})

        self.start(work)

    @rule()
    def start_cleaner_and_run_after_commit(self) -> None:
        """A cleaner that has read what a run has committed, when the run ends."""
        if self.running and len(self.running) < 3:
            self.advance(0, 12)
            self.start_cleaner()
            self.advance(len(self.running) - 1, 8)

    @rule()
    def start_cleaner(self) -> None:
        """A run that has nothing to do."""
        if len(self.running) < 3:
            self.start(lambda output: output.deduplicate())

    @rule(block=st.sets(st.sampled_from(IDS), min_size=1), failed=st.booleans())
    def start_orphan(self, block: set[str], failed: bool) -> None:
        """A worker whose driver is dead commits its block."""
        if len(self.running) < 3:
            self.start(lambda output: output.commit([row(name, failed, 1) for name in sorted(block)]))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2))
    def run_to_its_end(self, which: int) -> None:
        self.advance(which, 1000)

    @precondition(lambda self: self.running)
    @rule(schedule=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 20)), min_size=1, max_size=12))
    def interleave(self, schedule: list[tuple[int, int]]) -> None:
        """Each turn: which process goes on, and for how many operations."""
        for which, steps in schedule:
            self.advance(which, steps)

    def advance(self, which: int, steps: int) -> None:
        if not self.running:
            return
        gate = self.running[which % len(self.running)]
        for _ in range(steps):
            if not gate.ended:
                gate.step()
                STEPS["operations"] += 1

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2), roll=st.integers(0, 3))
    def kill(self, which: int, roll: int) -> None:
        if roll:
            return
        self.running[which % len(self.running)].step(kill=True)
        STEPS["kills"] += 1

    @invariant()
    def nothing_reported_is_lost(self) -> None:
        STEPS["checks"] += 1
        found = rows_in(UnfinishedOutput(self.uri, self.storage()))
        assert self.reported <= found.keys()

    @invariant()
    def a_finished_output_has_each_recording_once(self) -> None:
        output = Output(self.uri, self.storage())
        if output.report() is not None:
            STEPS["finished"] += 1
            found = rows_in(output)
            assert found.keys() == set(IDS)
            assert all(len(rows) == 1 for rows in found.values()), found

    def teardown(self) -> None:
        """Whatever is left, the next run completes: every file valid, for readers of all files, too."""
        STEPS["examples"] += 1
        for gate in self.running:
            gate.step(kill=True)
        output = Output(self.uri, self.storage())
        contents = output.deduplicate()
        missing = [name for name in IDS if all(name not in names for names in contents.attempts.values())]
        assert not self.reported & set(missing)
        contents = output.begin(contents)
        written = set(output.commit([row(name, False, 1) for name in missing]))
        output.consolidate(contents, written, superseded=False)
        assert {
            name: len(rows) for name, rows in rows_in(UnfinishedOutput(self.uri, self.storage())).items()
        } == dict.fromkeys(IDS, 1)


@pytest.fixture(autouse=True)
def operations_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.output.ThreadPoolExecutor", RunsInOrder)
    monkeypatch.setattr("pipelines.output.FEW_FILES", 1)  # every end of a run merges
    monkeypatch.setattr("uuid.uuid4", lambda: uuid.UUID(int=NAMES.getrandbits(128)))


def run_machine(machine: type[Machine], examples: int, steps: int) -> None:
    STEPS.clear()
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(machine.__name__, dict(STEPS))


def test_interleavings_of_runs_cleaners_and_kills() -> None:
    run_machine(Machine, EXAMPLES, steps=20)
    assert STEPS["kills"]
    assert STEPS["finished"]


def test_interleavings_on_s3(s3: S3) -> None:
    numbers = itertools.count()

    class S3Machine(Machine):
        def __init__(self) -> None:
            super().__init__()
            self.uri = f"{s3.bucket}/{next(numbers)}"

        def storage(self, wait: Callable[[], None] = lambda: None) -> Storage:
            return GatedStorage(s3.options, wait)

    run_machine(S3Machine, EXAMPLES // 10, steps=15)
