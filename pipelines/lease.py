"""One run at a time on an output folder.

    OUTPUT/lease/00000007.json    the seventh holder: run, host, process; written anew every RENEW_S seconds

It is a lease and not a lock, because the holder's machine may disappear: a lease that is not renewed for EXPIRE_S has
expired. Clocks of different machines are not compared. A newcomer reads the lease for EXPIRE_S: if its content changes,
another run is alive and the newcomer is rejected. On the holder's own machine its process is looked up, so that the
lease of a killed run is taken over at once.

To take over, a newcomer creates the file with the next number if it does not exist, which only one of several can.
Each file is written by its holder alone, so that no renewal or release can overwrite another's lease. The highest
number holds; an earlier holder that was suspended finds it and stops. It may do so late: the lease saves double work,
and what a run removes is safe without it (``pipelines.commits``).
"""

import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from pipelines.numbered_files import NumberedFiles
from speech.errors import RayscribeError, UsageError
from storage.filesystem import Storage
from storage.uris import join

log = logging.getLogger("rayscribe")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
RENEW_S = 5.0
EXPIRE_S = 30.0

Holder = dict[str, Any]  # run, host, pid, process_started, process_ids_of, renewals, released


class Lease:
    """Held while its ``with`` block runs.

    Raises:
        UsageError: ``output_in_use``: another run holds it.
    """

    def __init__(self, output: str, storage: Storage, renew_s: float = RENEW_S, expire_s: float = EXPIRE_S) -> None:
        self._output, self._files = output, _files(output, storage)
        self._renew_s, self._expire_s = renew_s, expire_s
        process = psutil.Process()
        self._holder: Holder = {
            "run": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": process.pid,
            "process_started": _started_s(process),
            "process_ids_of": _process_ids_of(),
            "renewals": 0,
            "released": False,
        }
        self._number = 0
        self._taken_by: Holder | None = None
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True, name="lease")

    def __enter__(self) -> Self:
        self._number = self._await_expiry() + 1
        created = self._files.create(self._number, self._holder)
        last, found = self._latest()
        if not created or last != self._number:  # another newcomer was first
            raise self._in_use(found)
        self._files.remove_below(self._number)
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._renewer.join()
        self._holder["released"] = True
        try:
            self._files.write(self._number, self._holder)
        except RayscribeError as failed:  # it expires; an error of the run itself must not be replaced
            log.warning("the lease on %s could not be released: %s", self._output, failed)

    def check(self) -> None:
        """Returns if the lease was held at the last renewal.

        Raises:
            RayscribeError: ``output_taken``: it was not renewed for so long that another run has taken it over.
        """
        if self._taken_by is not None:
            raise RayscribeError(
                "output_taken",
                f"this run did not renew its lease on {self._output} for {self._expire_s:.0f} s, and "
                f"{_name(self._taken_by)} has taken it over: let that run end",
            )

    def verify(self) -> None:
        """Returns if the lease is held now, which takes a request. Errors as of ``check``, and of storage."""
        number, holder = self._latest()
        if number != self._number:
            self._taken_by = holder or {}
        self.check()

    def _await_expiry(self) -> int:
        """The number of the last lease, once it is free."""
        number, first = self._latest()
        first_read_at = time.monotonic()
        while first is not None and not first.get("released") and not self._is_dead(first):
            time.sleep(min(1.0, self._renew_s))
            asked_at = time.monotonic()  # a response shows the lease as it was after this, however late it arrives
            last, now = self._latest()
            if now is not None and now.get("released"):
                return last
            if (last, now) != (number, first):
                raise self._in_use(now)
            if asked_at - first_read_at >= self._expire_s:
                break
        return number

    def _is_dead(self, holder: Holder) -> bool:
        """Whether the holder was a process of this machine that has ended."""
        if holder.get("process_ids_of") != self._holder["process_ids_of"]:
            return False
        try:
            return bool(_started_s(psutil.Process(holder["pid"])) != holder["process_started"])
        except psutil.NoSuchProcess:
            return True

    def _renew(self) -> None:
        while not self._released.wait(self._renew_s):
            self._holder["renewals"] += 1
            try:
                number, holder = self._latest()
                if number > self._number:
                    self._taken_by = holder or {}
                    return
                self._files.write(self._number, self._holder)
            except RayscribeError as error:  # tried again in RENEW_S
                log.warning("the lease on %s could not be renewed: %s", self._output, error)

    def _latest(self) -> tuple[int, Holder | None]:
        """The number and the holder of the last lease; 0 and None if there was none."""
        return self._files.latest() or (0, None)

    def _in_use(self, holder: Holder | None) -> UsageError:
        return UsageError(
            "output_in_use",
            f"another run is writing to {self._output} ({_name(holder or {})}): wait for it, or stop it",
        )


def read_lease(output: str, storage: Storage) -> Holder | None:
    """The holder of an output's lease, which may have died; None if it is released."""
    latest = _files(output, storage).latest()
    return latest[1] if latest and not latest[1].get("released") else None


def _started_s(process: psutil.Process) -> float:
    """Seconds from the machine's boot to the start of a process: setting the clock does not change them."""
    return round(process.create_time() - psutil.boot_time(), 2)


def _process_ids_of() -> str:
    """Where a process id is of one process alone: this machine since its boot and, in a container, there.

    Two machines may have the same name. Elsewhere than on Linux it is the name.
    """
    try:
        return f"{BOOT_ID.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _files(output: str, storage: Storage) -> NumberedFiles:
    return NumberedFiles(join(output, "lease"), storage)


def _name(holder: Holder) -> str:
    return f"process {holder['pid']} on {holder['host']}" if holder else "another process"
