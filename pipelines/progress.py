"""The job's progress on stderr: a bar on a terminal, a line every LOG_EVERY_S seconds elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from pipelines.summary import Summary

if TYPE_CHECKING:
    from pipelines.limits import Limits

# Between two lines in a log, so that the log of a run of days stays small.
LOG_EVERY_S = 30.0


class Progress:
    """Shows the progress of a run. On stderr, so that stdout has only the result."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, markup=False)  # names of models and folders may hold brackets
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
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
        """Shows the current step, before the first receipt."""
        self._bars.update(self._task, description=doing)
        self._log(doing)

    def warn(self, line: str) -> None:
        """Shows a line that stays on the terminal."""
        self._console.print(f"warning: {line}", highlight=False, soft_wrap=True)

    def start(self, total: int, waiting_for: str) -> None:
        """Starts counting recordings."""
        self._total = total
        self._bars.update(self._task, description="transcribing", total=total, detail=f"waiting for {waiting_for}")
        self._log(f"{total} recordings to transcribe; waiting for {waiting_for}")

    def update(self, summary: Summary, limits: "Limits") -> None:
        """Shows the counts so far, and what has limited since the last line of the log."""
        failed = f" · {summary.failed.total()} failed" if summary.failed else ""
        limited = f" · limited by {limits.most}" if limits.most else ""
        detail = f"{summary.audio_s / 3600:.2f} h of audio · RTFx {summary.rtfx:.0f}{limited}{failed}"
        self._bars.update(self._task, description="transcribing", completed=summary.finished, detail=detail)
        if time.monotonic() - self._logged_at >= LOG_EVERY_S or summary.finished == self._total:
            self._log(f"{summary.finished} of {self._total} recordings · {detail}")
            limits.begin()

    def _log(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, soft_wrap=True)
            self._logged_at = time.monotonic()
