"""One run at a time on an output folder.

    OUTPUT/lease.json    who holds it: run, host, process; written anew every RENEW_S seconds

A lease and not a lock, since the machine that holds it may vanish: one that is no longer renewed is
taken over. No clock is compared with another machine's. A newcomer watches whether the lease is
renewed under its eyes: if it is, another run is at work and the newcomer is refused; if not for
EXPIRE_S, its holder is gone. On the machine of a holder that has died no time is lost: its process is
looked up. A holder that was only asleep, as a laptop is, learns of it when it wakes (``check``).
"""

import json
import logging
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Self

import psutil

from speech.errors import RayscribeError, UsageError
from storage.filesystem import Storage
from storage.uris import join

log = logging.getLogger("rayscribe")

RENEW_S = 5.0
EXPIRE_S = 30.0


class Lease:
    """Held while its ``with`` block runs.

    Raises:
        UsageError: ``output_in_use``: another run holds it.
    """

    def __init__(self, output: str, storage: Storage, renew_s: float = RENEW_S, expire_s: float = EXPIRE_S) -> None:
        self._output = output
        self._uri = join(output, "lease.json")
        self._storage = storage
        self._renew_s, self._expire_s = renew_s, expire_s
        process = psutil.Process()
        self._holder = {
            "run": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": process.pid,
            "process_started": process.create_time(),
        }
        self._renewals = 0
        self._taken_by: dict[str, Any] | None = None
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True, name="lease")

    def __enter__(self) -> Self:
        if not self._storage.create_bytes(self._uri, self._text()):
            self._await_end_of_other()
            self._storage.write_bytes(self._uri, self._text())
            found = read_lease(self._output, self._storage)
            if found is None or found["run"] != self._holder["run"]:  # another newcomer was quicker
                raise self._in_use(found)
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._renewer.join()
        if self._taken_by is None:
            self._storage.remove(self._uri)

    def check(self) -> None:
        """Returns while the lease is held.

        Raises:
            RayscribeError: ``output_taken``: it was not renewed for so long that another run has taken it over.
        """
        if self._taken_by is not None:
            raise RayscribeError(
                "output_taken",
                f"this run was silent for over {self._expire_s:.0f} s, and {_name(self._taken_by)} has taken "
                f"{self._output} over: let that one end",
            )

    def _await_end_of_other(self) -> None:
        """Returns when the lease that stands is nobody's."""
        first = read_lease(self._output, self._storage)
        deadline = time.monotonic() + self._expire_s
        while first is not None and not self._is_dead(first):
            time.sleep(min(1.0, self._renew_s))
            now = read_lease(self._output, self._storage)
            if now is None or time.monotonic() > deadline:
                return
            if now != first:
                raise self._in_use(now)

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        """Whether the holder was a process of this machine that has ended."""
        if holder["host"] != self._holder["host"]:
            return False
        try:
            return bool(psutil.Process(holder["pid"]).create_time() != holder["process_started"])
        except psutil.NoSuchProcess:
            return True

    def _renew(self) -> None:
        while not self._released.wait(self._renew_s):
            self._renewals += 1
            try:
                found = read_lease(self._output, self._storage)
                if found is not None and found["run"] != self._holder["run"]:
                    self._taken_by = found
                    return
                self._storage.write_bytes(self._uri, self._text())
            except RayscribeError as error:  # the next renewal may do; the work itself is tried apart
                log.warning("the lease on %s could not be renewed: %s", self._output, error)

    def _text(self) -> bytes:
        return json.dumps(self._holder | {"renewals": self._renewals}).encode()

    def _in_use(self, holder: dict[str, Any] | None) -> UsageError:
        who = _name(holder) if holder else "another process"
        return UsageError("output_in_use", f"another run is writing to {self._output} ({who}): wait for it, or stop it")


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}"


def read_lease(output: str, storage: Storage) -> dict[str, Any] | None:
    """The lease that stands on an output, whoever holds it; None if there is none."""
    text = storage.read_bytes(join(output, "lease.json"))
    lease: dict[str, Any] | None = json.loads(text) if text is not None else None
    return lease
