"""The state of a run, read from its output folder: while it runs or afterwards, from any machine."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from pipelines.lease import read_lease
from pipelines.output import Output
from storage.filesystem import Storage


@dataclass(frozen=True)
class Status:
    """The state of an output folder and of the run that fills it."""

    output: str
    manifest: str
    recordings: int | None  # in the manifest, once it has been read
    by_model: Mapping[str, int]  # transcribed recordings
    failures: list[dict[str, Any]]  # recording_id, audio, attempt, error
    holder: dict[str, Any] | None  # of the lease
    finished: bool

    @property
    def ok(self) -> int:
        """Transcribed recordings."""
        return sum(self.by_model.values())

    def print(self, each_failure: bool = False) -> None:
        """Shows the counts, and each failed recording if asked."""
        console = Console(markup=False)  # ids and messages may hold brackets
        table = Table(show_header=False, box=SIMPLE)
        table.add_row("state", self._state())
        table.add_row("manifest", self.manifest)
        answered = self.ok + len(self.failures)
        table.add_row("answered", f"{answered}" + (f" of {self.recordings}" if self.recordings is not None else ""))
        table.add_row("transcribed", str(self.ok))
        for model, count in sorted(self.by_model.items()) if len(self.by_model) > 1 else ():
            table.add_row(f"  {printable(model)}", str(count))
        table.add_row("failed", str(len(self.failures)))
        for code, count in Counter(row["error"]["code"] for row in self.failures).most_common():
            table.add_row(f"  {code}", str(count))
        console.print(table, highlight=False)
        if each_failure and self.failures:
            failed = Table("recording", "stage", "code", "attempt", "what happened", box=SIMPLE)
            for row in self.failures:
                error = row["error"]
                failed.add_row(
                    *(printable(cell) for cell in (row["recording_id"], error["stage"], error["code"])),
                    str(row["attempt"]),
                    printable(error["message"]),
                )
            console.print(failed, highlight=False)

    def _state(self) -> str:
        if self.finished:
            return "finished"
        if self.holder:
            return f"running: process {self.holder['pid']} on {self.holder['host']}, unless that has died"
        return "stopped before its end; the same command again continues"


def read_status(output_uri: str, storage_options: Mapping[str, Any]) -> Status:
    """Reads the status of an output folder.

    Raises:
        UsageError: ``not_found``: no run has begun there; or its storage cannot be read.
    """
    storage = Storage(storage_options)
    output = Output(output_uri, storage)
    job = output.require_job()
    failures = [
        row
        for batch in output.batches("failed", ["recording_id", "audio", "attempt", "error"])
        for row in batch.to_pylist()
    ]
    return Status(
        output=output_uri,
        manifest=job["manifest"],
        recordings=job.get("recordings"),
        by_model=_by_model(output),
        failures=sorted(failures, key=lambda row: str(row["recording_id"])),
        holder=read_lease(output_uri, storage),
        finished=output.report() is not None,
    )


def _by_model(output: Output) -> Counter[str]:
    counts: Counter[str] = Counter()
    for batch in output.batches("ok", ["model"]):
        for counted in pc.value_counts(batch["model"]):
            counts[counted["values"].as_py()] += counted["counts"].as_py()
    return counts


def printable(text: str) -> str:
    """Text with control characters escaped: an id may hold a terminal's escape sequences."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
