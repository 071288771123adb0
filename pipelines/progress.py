"""The job's progress, as people and logs read it: a live bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from pipelines.summary import Summary

# Between lines in a log, so that a run of days writes megabytes of progress nowhere.
LOG_EVERY_S = 30.0


class Progress:
    """Shows how far a run is. On stderr, so that stdout holds the result alone."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bars.add_task("", total=None, detail="")
        self._total = 0
        self._logged_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, doing: str) -> None:
        """Names what is being done before recordings begin to come."""
        self._bars.update(self._task, description=doing)
        self._log(doing)

    def start(self, total: int, waiting_for: str) -> None:
        """Begins to count recordings."""
        self._total = total
        self._bars.update(self._task, description="transcribing", total=total, detail=f"waiting for {waiting_for}")
        self._log(f"{total} recordings to transcribe; waiting for {waiting_for}")

    def update(self, summary: Summary) -> None:
        """Shows the counts so far."""
        failed = f" · {summary.failed.total()} failed" if summary.failed else ""
        detail = f"{summary.audio_s / 3600:.2f} h of audio · RTFx {summary.rtfx:.0f}{failed}"
        self._bars.update(self._task, completed=summary.finished, detail=detail)
        if time.monotonic() - self._logged_at >= LOG_EVERY_S or summary.finished == self._total:
            self._log(f"{summary.finished} of {self._total} recordings · {detail}")

    def _log(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, soft_wrap=True)
            self._logged_at = time.monotonic()
