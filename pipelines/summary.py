"""The counts of a run: updated from receipts while it runs, shown and stored at its end."""

# pyarrow imports it with the first timestamp that it converts, and takes a signal that comes meanwhile for its absence.
import zoneinfo  # noqa: F401
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


@dataclass
class Summary:
    """Counts of one run. Durations are seconds of audio."""

    done_before: int = 0  # recordings of the manifest that earlier runs transcribed
    failed_before: int = 0  # recordings of the manifest that failed in them and are not tried again
    skipped_files: int = 0  # of a folder or glob, neither audio nor manifest
    ok: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by error code
    audio_s: float = 0.0
    speech_s: float = 0.0
    models: dict[str, Counter[str]] = field(default_factory=dict)  # by model: counts of ok and failed
    usage: Counter[str] = field(default_factory=Counter)
    first_ready_at: datetime | None = None
    last_finished_at: datetime | None = None

    def add(self, receipts: pa.Table) -> None:
        """Counts a batch of receipts (``pipelines.rows.RECEIPT``)."""
        ok = pc.equal(receipts["status"], "ok")
        done = receipts.filter(ok)
        self.ok += len(done)
        self.audio_s += pc.sum(done["duration_s"]).as_py() or 0.0
        self.speech_s += pc.sum(done["speech_s"]).as_py() or 0.0
        self.failed.update(receipts["code"].filter(pc.invert(ok)).to_pylist())
        models, statuses = receipts["model"].to_pylist(), receipts["status"].to_pylist()
        for (model, status), count in Counter(zip(models, statuses, strict=True)).items():
            self.models.setdefault(model, Counter(ok=0, failed=0))[status] += count
        for name in receipts.schema.field("usage").type.names:
            self.usage[name] += pc.sum(pc.struct_field(receipts["usage"], name)).as_py() or 0
        ready, finished = pc.min(receipts["engine_ready_at"]).as_py(), pc.max(receipts["finished_at"]).as_py()
        self.first_ready_at = min(ready, self.first_ready_at or ready)
        self.last_finished_at = max(finished, self.last_finished_at or finished)

    @property
    def finished(self) -> int:
        """Recordings with a result in this run, transcribed or failed."""
        return self.ok + self.failed.total()

    @property
    def work_s(self) -> float:
        """Seconds from the first engine's readiness to the last transcript, without the loading of the model."""
        if self.first_ready_at is None or self.last_finished_at is None:
            return 0.0
        return (self.last_finished_at - self.first_ready_at).total_seconds()

    @property
    def rtfx(self) -> float:
        """Inverse real-time factor: seconds of audio per second of work (as on the Open ASR Leaderboard)."""
        return self.audio_s / self.work_s if self.work_s > 0 else 0.0

    @property
    def acceptance_length(self) -> float:
        """Mean output tokens per decode step and clip: 1 without accepted draft tokens."""
        written = self.usage["output_tokens"]
        steps = written - self.usage["accepted_draft_tokens"]
        return written / steps if steps > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "recordings": {
                "ok": self.ok,
                "failed": self.failed.total(),
                "done_before": self.done_before,
                "failed_before": self.failed_before,
            },
            "failures": dict(self.failed),
            "models": {model: dict(counts) for model, counts in self.models.items()},
            "skipped_files": self.skipped_files,
            "audio_s": round(self.audio_s, 3),
            "speech_s": round(self.speech_s, 3),
            "work_s": round(self.work_s, 3),
            "rtfx": round(self.rtfx, 2),
            "usage": dict(self.usage),
            "acceptance_length": round(self.acceptance_length, 2),
        }

    @property
    def any_failed(self) -> bool:
        """Whether recordings of the manifest failed, in this run or in an earlier one."""
        return bool(self.failed) or self.failed_before > 0

    def print(self, output: str) -> None:
        """Shows the summary as a table on stdout."""
        table = Table(show_header=False, box=SIMPLE, title="rayscribe transcribe", title_justify="left")
        table.add_row("recordings", f"{self.ok} transcribed, {self.failed.total()} failed")
        for model, counts in sorted(self.models.items()) if len(self.models) > 1 else ():
            table.add_row(f"  {model}", f"{counts['ok']} transcribed, {counts['failed']} failed")
        if self.done_before or self.failed_before:
            table.add_row("from earlier runs", f"{self.done_before} transcribed, {self.failed_before} failed")
        if self.skipped_files:
            table.add_row("files skipped", f"{self.skipped_files}, whose suffixes are not of audio")
        table.add_row("audio", _hours(self.audio_s))
        table.add_row("speech", f"{_hours(self.speech_s)}, summed over channels")
        table.add_row("RTFx", f"{self.rtfx:.1f} (seconds of audio a second, over {self.work_s:.0f} s of work)")
        if drafted := self.usage["draft_tokens"]:
            accepted = f"{self.usage['accepted_draft_tokens']} of {drafted} tokens accepted"
            table.add_row("drafts", f"{accepted}, {self.acceptance_length:.1f} tokens a step")
        for code, count in self.failed.most_common():
            table.add_row(f"  failed: {code}", str(count))
        table.add_row("output", f"{output}/transcripts")
        Console(markup=False).print(table, highlight=False)  # paths may hold brackets


def _hours(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min {rest % 60:02d} s"
