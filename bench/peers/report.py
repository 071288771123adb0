"""What both benches of peers share: the clips of a manifest, and the table of RTFx and word error rate."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.peers.turns import Clips, Contender, figures
from bench.speculation import clips_of, word_error_rate
from speech.engines.base import ClipRequest


@dataclass(frozen=True)
class Material:
    """English clips to transcribe, and the references of their recordings."""

    requests: list[ClipRequest]
    references: dict[str, str]

    @property
    def samples(self) -> Clips:
        return [request.samples for request in self.requests]

    @property
    def audio_s(self) -> float:
        return sum(request.seconds for request in self.requests)


def material_of(manifest: str, model: str, recordings: int | None = None) -> Material:
    """What can be asked of all contenders: transcriptions of English without keywords.

    Args:
        manifest: of recordings.
        model: whose clip limit the Listener cuts to.
        recordings: so many of the manifest's; None for all.
    """
    references, clips = clips_of(manifest, model)
    asked = [clip for clip in clips if clip.options.task == "transcribe" and clip.options.language == "en"]
    asked = [clip for clip in asked if not clip.options.keywords]
    kept = list(dict.fromkeys(clip.recording_id for clip in asked))[:recordings]
    asked = [clip for clip in asked if clip.recording_id in kept]
    return Material(asked, {name: text for name, text in references.items() if name in kept})


def report(title: str, contenders: Sequence[Contender], running: Sequence[Contender], material: Material) -> None:
    """Prints RTFx, ratios and word error rates, those that were skipped with the reason, and a line of JSON.

    Args:
        contenders: all.
        running: those that have run; the first is ours.
    """
    rows: list[dict[str, Any]] = []
    for contender in running:
        wer = word_error_rate(material.requests, contender.rounds[0].texts, material.references)
        rows.append(figures(contender, running[0], material.audio_s) | {"wer": round(wer, 4)})
    skipped = {contender.name: contender.skipped for contender in contenders if contender.skipped}
    table = Table("", "RTFx", "ours over it", "tokens", "WER", title=title)
    for row in rows:
        cells = f"{row['rtfx']:.1f}", f"{row['ours_over_it']:.2f}", str(row["tokens"] or ""), f"{row['wer']:.1%}"
        table.add_row(row["contender"], *cells)
    Console(width=110).print(table)
    for name, reason in skipped.items():
        print(f"skipped: {name}: {reason}")
    print(json.dumps({"title": title, "audio_s": round(material.audio_s, 1), "rows": rows, "skipped": skipped}))
