"""Acceptance: recordings as real systems write them, through Listener and Transcriber; each must give the right text.

    python -m bench.cases [--cases ../shared/cases] [--only NAME ...] [--engine transformers] [--show]

The recordings are made of three of the samples: M = billing-009 (one voice), N = names-014 (one voice), A = travel-004
(stereo, agent and customer). The reference of a case is what the same model writes for those samples themselves, so
that the model's own errors do not count; the tolerance is a word error rate against it, above 0 where a codec or a
disturbance changes what the model writes. Duration, channels and times are compared where they are known. Every
recording is read twice, by its path and from a stream; both must give the same clips.

Prints a table and, last, one line of JSON; the exit code is 1 if any case is wrong. Without the recordings, which are
not part of this repository, it says so and exits with 0.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
from rich.console import Console
from rich.table import Table

from pipelines.evaluate import normaliser
from speech.engines.base import EngineConfig, start_engine
from speech.errors import RayscribeError
from speech.listener import Listener, ListenResult
from speech.models.checkpoint import family_of
from speech.recording import Options, Recording
from speech.transcriber import Transcriber
from speech.transcript import Transcript

ROOT = Path(__file__).parent.parent
SAMPLES = {"M": "billing-009-dual-mono.wav", "N": "names-014.flac", "A": "travel-004.wav"}
# Word error rates: of PCM; of codecs that keep the band (measured: 0 to 5 %); of those that do not, or of cut words.
LOSSLESS, LOSSY, NARROW = 0.05, 0.15, 0.3
DURATION_TOLERANCE_S = TIME_TOLERANCE_S = 0.3


@dataclass(frozen=True)
class Case:
    """One recording and what it must give.

    Attributes:
        file: its name under audio/.
        samples: whose texts it must give, in the order of time.
        by_channel: the samples are simultaneous, each on a channel of its own, in this order.
        tolerance: the highest word error rate against the samples' transcripts.
        channels: how many must be transcribed; None: not compared.
        seconds: the durations that are right; empty: not compared.
        offset_s: how much later than the sample's the segments must be; None: not compared.
        clip_channels: the channels of the clips, compared in place of a text.
        row: columns of its manifest row.
    """

    file: str
    samples: str = ""
    tolerance: float = LOSSY
    by_channel: bool = False
    channels: int | None = None
    seconds: tuple[float, ...] = ()
    offset_s: float | None = None
    clip_channels: tuple[int, ...] = ()
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join([self.file, *(f"{column}={value}" for column, value in self.row.items())])


CASES = (
    Case("chained.opus", "MN", seconds=(23.2,)),
    Case("chained.ogg", "MN", seconds=(23.2,)),
    Case("gap.opus", "M", NARROW, seconds=(22.8, 12.8)),
    Case("mp3-in.wav", "A", channels=2),
    Case("starts-at-5s.webm", "M"),
    Case("dtx.amr", "M", NARROW),
    Case("mono-then-stereo.mp3", "MA"),
    Case("raw.g722", "M"),
    Case("two-tracks.mkv", "MN", by_channel=True),
    Case("agent-customer-mix.wav", "A", LOSSLESS),
    Case("piped.w64", "A", LOSSLESS),
    Case("piped.aiff", "A", LOSSLESS),
    Case("id3v1-tag.m4a", "M"),
    Case("late-audio.mp4", "M", offset_s=5.0),
    Case("inverted.wav", "M", LOSSLESS),
    Case("inverted.wav", "M", LOSSLESS, row={"channels": "mix"}),
    Case("dc.wav", "A", LOSSLESS, channels=2),
    Case("with-hum.wav", "A", LOSSLESS, channels=2),
    Case("beep-first.wav", "A", LOSSLESS, channels=2, offset_s=2.0),
    Case("right-only-0.9s.wav", clip_channels=(1,)),
)


@dataclass(frozen=True)
class Result:
    """What a case gave; ``wrong`` says why it is not right, and is empty where it is."""

    case: Case
    wrong: tuple[str, ...]
    wer: float | None = None
    transcript: Transcript | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=ROOT.parent / "shared" / "cases", help="its audio/ is read")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose name contains one of these")
    parser.add_argument("--model", default=str(ROOT / "demo" / "model"))
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="transformers")
    parser.add_argument("--show", action="store_true", help="print reference and transcript of what is wrong")
    parsed = parser.parse_args(arguments)
    audio = parsed.cases / "audio"
    if not audio.is_dir():
        print(json.dumps({"skipped": f"there are no recordings at {audio}"}))
        return 0
    cases = [case for case in CASES if not parsed.only or any(part in case.name for part in parsed.only)]
    results, references = asyncio.run(_run(cases, audio, EngineConfig(model=parsed.model, engine=parsed.engine)))
    wrong = [result for result in results if result.wrong]
    _print(results)
    for result in wrong if parsed.show else ():
        print(f"\n{result.case.name}")
        print(f"  reference   {' | '.join(references[sample].text for sample in result.case.samples)}")
        print(f"  transcript  {result.transcript.text if result.transcript else ''}")
    print(json.dumps({"cases": len(results), "wrong": len(wrong), "why": {r.case.name: r.wrong for r in wrong}}))
    return int(bool(wrong))


async def _run(cases: Sequence[Case], audio: Path, config: EngineConfig) -> tuple[list[Result], dict[str, Transcript]]:
    """The results of all cases, and the transcripts of the samples."""
    family = family_of(config.model)
    listener = Listener(clip_s=family.clip_s)
    engine = start_engine(config, family)
    transcriber = Transcriber(engine, family, config.model, config.concurrent_clips)

    async def reference(file: str) -> Transcript:
        # M is dual mono: its first channel, so that no reference depends on how channels are told apart.
        channels = "split" if file == SAMPLES["A"] else "first"
        recording = _recording(ROOT / "demo" / "samples" / file, {"channels": channels})
        return await transcriber.transcribe(recording, listener.listen(recording))

    try:
        references = {sample: await reference(file) for sample, file in SAMPLES.items()}
        return [await _result(case, audio / case.file, listener, transcriber, references) for case in cases], references
    finally:
        engine.stop()


async def _result(
    case: Case, path: Path, listener: Listener, transcriber: Transcriber, references: dict[str, Transcript]
) -> Result:
    try:
        recording = _recording(path, case.row)
        listened = listener.listen(recording)
        with path.open("rb") as stream:
            streamed = listener.listen(recording, stream)
        transcript = await transcriber.transcribe(recording, listened)
    except RayscribeError as error:
        return Result(case, (f"{error.code}: {error}",))
    except Exception as error:  # what the job calls ``internal``; the other cases go on
        return Result(case, (f"{type(error).__name__}: {error}",))
    wrong = list(_differences(case, listened, transcript, references))
    if _extent(streamed) != _extent(listened):
        wrong.append(f"from a stream {_extent(streamed)}, by its path {_extent(listened)}")
    wer = _error_rate(case, transcript, references) if case.samples else None
    if wer is not None and wer > case.tolerance:
        wrong.append(f"WER {wer:.0%}, at most {case.tolerance:.0%}")
    return Result(case, tuple(wrong), wer, transcript)


def _recording(path: Path, row: dict[str, Any]) -> Recording:
    return Recording.from_row({"id": path.name, "audio": str(path)} | row, Options())


def _differences(
    case: Case, listened: ListenResult, transcript: Transcript, references: dict[str, Transcript]
) -> list[str]:
    """What is not as it must be, the text apart."""
    wrong = []
    if case.channels not in (None, listened.channels):
        wrong.append(f"{listened.channels} channels, not {case.channels}")
    if case.seconds and not any(abs(listened.duration_s - each) < DURATION_TOLERANCE_S for each in case.seconds):
        wrong.append(f"{listened.duration_s:.1f} s, not {' or '.join(map(str, case.seconds))}")
    if case.clip_channels and case.clip_channels != tuple(clip.channel for clip in listened.clips):
        wrong.append(f"clips on channels {[clip.channel for clip in listened.clips]}, not {list(case.clip_channels)}")
    if case.offset_s is not None and transcript.segments:
        reference = references[case.samples].segments
        late = (
            transcript.segments[0].start_s - reference[0].start_s,
            transcript.segments[-1].end_s - reference[-1].end_s,
        )
        if any(abs(each - case.offset_s) > TIME_TOLERANCE_S for each in late):
            wrong.append(f"first start {late[0]:+.2f} s, last end {late[1]:+.2f} s, not {case.offset_s:+.2f} s")
    return wrong


def _extent(listened: ListenResult) -> tuple[float, int, int]:
    """Duration in seconds, channels, samples in clips."""
    return round(listened.duration_s, 2), listened.channels, sum(len(clip.samples) for clip in listened.clips)


def _error_rate(case: Case, transcript: Transcript, references: dict[str, Transcript]) -> float:
    """The word error rate against the samples' transcripts, over all channels."""
    texts = [references[sample].text for sample in case.samples]
    if not case.by_channel:
        return _wer([" ".join(texts)], [transcript.text])
    channels = [
        " ".join(segment.text for segment in transcript.segments if segment.channel == channel)
        for channel in range(max(len(texts), transcript.channels or 0))
    ]
    return _wer(texts + [""] * (len(channels) - len(texts)), channels)


def _wer(references: list[str], hypotheses: list[str]) -> float:
    normalise = normaliser(english=True)
    pairs = [(normalise(one), normalise(other)) for one, other in zip(references, hypotheses, strict=True)]
    inserted = sum(len(hypothesis.split()) for reference, hypothesis in pairs if not reference)
    counts = [jiwer.process_words(reference, hypothesis) for reference, hypothesis in pairs if reference]
    errors = sum(each.substitutions + each.deletions + each.insertions for each in counts) + inserted
    return errors / sum(len(reference.split()) for reference, _ in pairs)


def _print(results: list[Result]) -> None:
    table = Table("recording", "text of", "WER", "s", "channels", "wrong")
    for result in results:
        transcript = result.transcript
        table.add_row(
            result.case.name,
            "+".join(result.case.samples),
            "" if result.wer is None else f"{result.wer:.0%}",
            f"{transcript.duration_s:.1f}" if transcript and transcript.duration_s is not None else "",
            str(transcript.channels) if transcript else "",
            "; ".join(result.wrong),
        )
    Console(width=150).print(table, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
