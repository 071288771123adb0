"""Flags on what nobody said, and on what was left out: recall by kind of audio, false alarms per hour.

    python -m bench.flags [--model demo/model] [--manifest demo/samples/manifest.jsonl ...]

More calls, with other sentences: ``python -m demo.train.samples --seed 2 --out out/calls-2`` (needs espeak-ng, flite
and ffmpeg), then ``--manifest demo/samples/manifest.jsonl out/calls-2/manifest.jsonl``.

The segments are those of the calls, as they are and disturbed, and audio without speech, most of which a VAD would keep
from the model. What was said in a segment of a call is the part of the manifest's ``text`` between the places where its
CTC hypothesis begins and ends. A segment has an invention if so many words in a row of its text were not said
(``LABEL_WORDS``; one where nothing was said), an omission if so many words that were said are not in its text. Kinds in
parentheses are made of texts that are right, by adding words of another segment, repeating or removing words; their
audio and hypotheses are real.

Beside the agreement with the CTC hypothesis (``speech.quality.agreement``) stand the checks of the text alone
(``speech.quality.flags``). The thresholds of the former were chosen on one half of the recordings, by the second table;
the first table is of the other half. Last, one line of JSON.
"""

import argparse
import asyncio
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import soxr
from rapidfuzz.distance import Levenshtein
from rich.console import Console
from rich.table import Table

from pipelines import manifest
from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, DecodingResult, Engine, EngineConfig, start_engine
from speech.errors import RayscribeError
from speech.listener import Listener
from speech.models.checkpoint import family_of
from speech.quality import agreement
from speech.quality.flags import segment_flags
from speech.recording import Options, Recording
from storage.filesystem import Storage

LABEL_WORDS = 3
SEED = 0
CLEAN = "calls"
# Of ``speech.quality.agreement``, and the values that are tried.
THRESHOLDS = ("MIN_EQUAL_CHARS", "MIN_HEARD_SHARE", "PASSAGE_WORDS")
GRID = tuple(itertools.product((2, 3, 4), (0.34, 0.5, 0.67), (2, 3, 4)))


@dataclass(frozen=True)
class Case:
    """One segment.

    Attributes:
        kind: of its audio.
        clip: its audio and options.
        said: the words of each voice in it; the first voice's must be in the text, unless ``may_omit``.
        chosen_on: whether it belongs to the half on which the thresholds were chosen.
    """

    kind: str
    clip: ClipRequest
    said: tuple[str, ...]
    chosen_on: bool
    may_omit: bool = False


@dataclass(frozen=True)
class Outcome:
    """A case, and what the engine wrote."""

    case: Case
    decoding: DecodingResult

    @property
    def is_invention(self) -> bool:
        run = _longest_run(_new_words(self.decoding.text, self.case.said))
        return run >= (LABEL_WORDS if any(self.case.said) else 1)

    @property
    def is_omission(self) -> bool:
        return _longest_run(_new_words(self.case.said[0], [self.decoding.text])) >= LABEL_WORDS

    @property
    def hours(self) -> float:
        return self.case.clip.seconds / 3600

    def is_flagged(self, flag: str) -> bool:
        """``not_heard``, ``left_out``, or any flag of the text alone (``no_text`` is not about an invention)."""
        if flag == "text alone":
            decoding = self.decoding
            return bool(segment_flags(decoding.text, self.case.clip.seconds, decoding.avg_logprob, decoding.complete))
        compared = agreement.agreement(self.decoding.text, self.decoding.hypothesis or "")
        return flag in agreement.agreement_flags(compared)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--manifest", nargs="+", default=["demo/samples/manifest.jsonl"])
    parser.add_argument("--disturbed", type=int, default=80, help="segments of each kind of disturbed or made audio")
    parser.add_argument("--show", action="store_true", help="print texts and hypotheses of false alarms and misses")
    parsed = parser.parse_args(arguments)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it prints its warnings to stdout
    outcomes = asyncio.run(_outcomes(parsed.model, parsed.manifest, parsed.disturbed))
    reported = [outcome for outcome in outcomes if not outcome.case.chosen_on]
    rows = [_row(kind, list(group)) for kind, group in _by_kind(reported).items()]
    _print_kinds(rows)
    grid = [_grid_row(values, [each for each in outcomes if each.case.chosen_on]) for values in GRID]
    _print_grid(grid)
    if parsed.show:
        _show(reported)
    print(json.dumps({"kinds": rows, "thresholds": grid}))


async def _outcomes(model: str, manifests: Sequence[str], disturbed: int) -> list[Outcome]:
    """What the engine writes for the calls, then for what is made of them."""
    engine = start_engine(EngineConfig(model=model, kv_cache_gb=0.5), family_of(model))
    try:
        calls = _calls(manifests, model)
        decoded = await _decode(engine, [clip for _, clips, _ in calls for clip in clips])
        clean = list(_with_truth(calls, decoded))
        rng = Random(SEED)
        cases = [*_speechless(disturbed, rng), *_disturbed(clean, disturbed, rng)]
        others = await _decode(engine, [case.clip for case in cases])
        made = list(_changed_texts(clean, disturbed, rng))
        return clean + [Outcome(case, decoding) for case, decoding in zip(cases, others, strict=True)] + made
    finally:
        engine.stop()


async def _decode(engine: Engine, clips: Sequence[ClipRequest]) -> list[DecodingResult]:
    numbered = [replace(clip, id=f"{number}/{clip.id}") for number, clip in enumerate(clips)]
    return await asyncio.gather(*map(engine.decode, numbered))


def _calls(manifests: Sequence[str], model: str) -> list[tuple[Recording, list[ClipRequest], bool]]:
    """Recordings that are to be transcribed, their clips, and their half. The same call is in other halves by turns."""
    listener, calls = Listener(clip_s=family_of(model).clip_s), []
    for number, uri in enumerate(manifests):
        for index, (_, row) in enumerate(manifest.read(uri, Storage())):
            try:
                recording = Recording.from_row(row, Options())
                clips = listener.listen(recording).clips
            except RayscribeError:  # the samples contain bad rows on purpose
                continue
            if recording.text and recording.options.task == "transcribe":
                requests = [
                    ClipRequest(clip.samples, recording.options, f"{recording.id}/{n}") for n, clip in enumerate(clips)
                ]
                calls.append((recording, requests, (number + index) % 2 == 0))
    return calls


def _with_truth(
    calls: Sequence[tuple[Recording, list[ClipRequest], bool]], decoded: Sequence[DecodingResult]
) -> Iterator[Outcome]:
    rest = iter(decoded)
    for recording, clips, chosen_on in calls:
        results = list(itertools.islice(rest, len(clips)))
        said = _parts(recording.text or "", [result.hypothesis or "" for result in results])
        for clip, result, words in zip(clips, results, said, strict=True):
            yield Outcome(Case(CLEAN, clip, (words,), chosen_on), result)


def _parts(text: str, hypotheses: Sequence[str]) -> list[str]:
    """Splits a recording's text into those of its clips, where the CTC hypotheses end: CTC invents nothing."""
    words = text.split()
    ends = [0, *accumulate(map(len, words))]
    read = [hypothesis.replace(" ", "") for hypothesis in hypotheses]
    opcodes = Levenshtein.opcodes("".join(read), "".join(words))
    parts, first = [], 0
    for place in accumulate(map(len, read)):
        block = next((block for block in opcodes if block.src_start < place <= block.src_end), None)
        end = min(block.dest_end, block.dest_start + place - block.src_start) if block else 0
        last = max(first, min(range(len(ends)), key=lambda index: abs(ends[index] - end)))
        parts.append(" ".join(words[first:last]))
        first = last
    return parts


def _speechless(count: int, rng: Random) -> Iterator[Case]:
    """Audio in which nothing is said."""
    makers = {"silence": _silence, "noise": _noise, "tones": _tones, "hold music": _hold_music}
    for (kind, make), number in itertools.product(makers.items(), range(count)):
        seconds = rng.uniform(1, 12)
        yield Case(kind, _clip(make(seconds, rng), Options(), kind), ("",), number % 2 == 0)


def _disturbed(clean: Sequence[Outcome], count: int, rng: Random) -> Iterator[Case]:
    """Segments of the calls that the model has transcribed without invention, with something added."""
    right = [each.case for each in clean if not (each.is_invention or each.is_omission) and each.case.said[0]]
    names = sorted({name for each in clean for name in each.case.clip.options.keywords})
    for case in rng.sample(right, min(count, len(right))):
        samples, half = case.clip.waveform(), case.chosen_on
        other = rng.choice(right)
        mixed = _mix(samples, other.clip.waveform(), rng.uniform(0, 12))
        yield Case("crosstalk", _clip(mixed, case.clip.options, "crosstalk"), (*case.said, *other.said), half, True)
        noisy = _mix(samples, _noise(len(samples) / SAMPLE_RATE, rng), rng.uniform(0, 10))
        yield Case("noisy speech", _clip(noisy, case.clip.options, "noisy"), case.said, half)
        with_music = _mix(samples, _hold_music(len(samples) / SAMPLE_RATE, rng), rng.uniform(0, 10))
        yield Case("speech over music", _clip(with_music, case.clip.options, "music"), case.said, half)
        yield Case("cut words", _clip(_cut(samples, rng), case.clip.options, "cut"), case.said, half, True)
        unsaid = [name for name in names if name not in case.said[0].split()]
        biased = Options(keywords=tuple(rng.sample(unsaid, min(8, len(unsaid)))))
        yield Case("keywords not said", replace(case.clip, options=biased, id="keywords"), case.said, half)
        noise = _noise(len(samples) / SAMPLE_RATE, rng)
        yield Case("keywords, noise", _clip(noise, biased, "keywords"), ("",), half)


def _changed_texts(clean: Sequence[Outcome], count: int, rng: Random) -> Iterator[Outcome]:
    right = [each for each in clean if each.decoding.text == each.case.said[0] and len(each.case.said[0].split()) > 7]
    for each in rng.sample(right, min(count, len(right))):
        words, size = each.decoding.text.split(), rng.randint(4, 7)
        start = rng.randint(0, len(words) - size)
        added = rng.choice(right).decoding.text.split()[:size]
        texts = {
            "(words added)": words[:start] + added + words[start:],
            "(words repeated)": words + 3 * words[-3:],
            "(words left out)": words[:start] + words[start + size :],
        }
        for kind, changed in texts.items():
            yield Outcome(replace(each.case, kind=kind), replace(each.decoding, text=" ".join(changed)))


def _clip(waveform: np.ndarray, options: Options, name: str) -> ClipRequest:
    return ClipRequest((np.clip(waveform, -1, 1) * 32767).astype(np.int16), options, name)


def _silence(seconds: float, rng: Random) -> np.ndarray:
    """Digital silence, or the faint noise of a line."""
    return _noise(seconds, rng) * rng.choice((0.0, 1e-3, 1e-2))


def _noise(seconds: float, rng: Random) -> np.ndarray:
    """White, or falling by 3 or 6 dB an octave; steady, or in bursts."""
    noise = np.random.default_rng(rng.getrandbits(32))
    count = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(noise.standard_normal(count))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20 * seconds) ** rng.choice((0.0, 0.5, 1.0))
    waveform = np.fft.irfft(spectrum, count)
    if rng.random() < 0.5:
        gains = noise.uniform(0, 1, round(seconds * 8) + 2)
        waveform = waveform * np.interp(np.arange(count) / SAMPLE_RATE * 8, np.arange(len(gains)), gains)
    return _at_peak(waveform, rng)


def _tones(seconds: float, rng: Random) -> np.ndarray:
    """Dialled digits (DTMF), ringing (440 and 480 Hz, on and off), or a tone that glides."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    kind = rng.randrange(3)
    if kind == 0:
        rows, columns = (697, 770, 852, 941), (1209, 1336, 1477)
        digits = [(rng.choice(rows), rng.choice(columns)) for _ in range(round(seconds * 4) + 1)]
        pairs = np.array(digits)[(time * 4).astype(int)]
        waveform = np.sin(2 * np.pi * time * pairs[:, 0]) + np.sin(2 * np.pi * time * pairs[:, 1])
        waveform *= (time * 4) % 1 < 0.6
    elif kind == 1:
        waveform = (np.sin(2 * np.pi * 440 * time) + np.sin(2 * np.pi * 480 * time)) * (time % 3 < 1)
    else:
        hz = rng.uniform(200, 800) * 2 ** np.sin(2 * np.pi * rng.uniform(0.1, 3) * time)
        waveform = np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE)
    return _at_peak(waveform, rng)


def _hold_music(seconds: float, rng: Random) -> np.ndarray:
    """Chords, a melody and a beat, through a telephone's band."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    beat_s = rng.uniform(0.25, 0.6)
    beats = (time / beat_s).astype(int)
    scale = rng.uniform(180, 300) * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
    waveform = np.zeros_like(time)
    for voice in range(4):
        notes = np.array([rng.choice(scale) for _ in range(beats[-1] + 1)]) * (2 if voice == 3 else 1)
        held = beats if voice == 3 else beats // 4 * 4
        phase = 2 * np.pi * np.cumsum(notes[held] * (1 + 0.005 * np.sin(2 * np.pi * 5 * time))) / SAMPLE_RATE
        decay = np.exp(-(time % (beat_s if voice == 3 else 4 * beat_s)) / beat_s)
        waveform += decay * sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 6))
    drum = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(time)) * np.exp(-(time % beat_s) * 40)
    narrow = soxr.resample(soxr.resample(waveform + rng.uniform(0, 2) * drum, SAMPLE_RATE, 8000), 8000, SAMPLE_RATE)
    return _at_peak(narrow[: len(time)], rng)


def _at_peak(waveform: np.ndarray, rng: Random) -> np.ndarray:
    return (waveform / (np.abs(waveform).max() + 1e-9) * rng.uniform(0.05, 0.8)).astype(np.float32)


def _mix(speech: np.ndarray, other: np.ndarray, ratio_db: float) -> np.ndarray:
    """Speech, and the other signal, shortened or repeated to its length, so many dB below it."""
    other = np.resize(other, len(speech))
    gain = np.sqrt(np.mean(speech**2) / (np.mean(other**2) + 1e-12)) * 10 ** (-ratio_db / 20)
    mixed = speech + gain * other
    return mixed / max(1.0, float(np.abs(mixed).max()))


def _cut(speech: np.ndarray, rng: Random) -> np.ndarray:
    """Speech that starts and ends anywhere, with holes of 0.2 to 0.6 s, a second or two apart."""
    size = len(speech)
    speech = speech[round(rng.uniform(0, 0.2) * size) : size - round(rng.uniform(0, 0.2) * size)].copy()
    at = rng.uniform(0.3, 1.5)
    while at * SAMPLE_RATE < len(speech):
        hole_s = rng.uniform(0.2, 0.6)
        speech[round(at * SAMPLE_RATE) : round((at + hole_s) * SAMPLE_RATE)] = 0
        at += hole_s + rng.uniform(1, 2)
    return speech


def _new_words(text: str, references: Sequence[str]) -> list[bool]:
    """For each word of a text whether no reference has it in its place."""
    words = text.split()
    new = [True] * len(words)
    for reference in references:
        for block in Levenshtein.opcodes(words, reference.split()):
            if block.tag == "equal":
                new[block.src_start : block.src_end] = [False] * (block.src_end - block.src_start)
    return new


def _longest_run(values: Iterable[bool]) -> int:
    return max((len(list(run)) for value, run in itertools.groupby(values) if value), default=0)


def _by_kind(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    kinds: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        kinds[outcome.case.kind].append(outcome)
    return kinds


def _row(kind: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of one kind; recall is None where there is nothing to find, all of omissions where they may be."""
    hours = sum(each.hours for each in outcomes)
    row: dict[str, Any] = {"kind": kind, "segments": len(outcomes), "hours": round(hours, 3)}
    for flag, wanted in (("not_heard", "is_invention"), ("text alone", "is_invention"), ("left_out", "is_omission")):
        found = [each for each in outcomes if getattr(each, wanted)]
        alarms = [each for each in outcomes if not getattr(each, wanted) and each.is_flagged(flag)]
        if flag == "left_out" and any(each.case.may_omit for each in outcomes):
            row[flag] = None
            continue
        row[flag] = {
            "to_find": len(found),
            "recall": round(sum(each.is_flagged(flag) for each in found) / len(found), 3) if found else None,
            "false": len(alarms),
            "false_per_hour": round(len(alarms) / hours, 1),
        }
    return row


def _grid_row(values: tuple[int, float, int], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Recall over all kinds and on the calls, and false alarms on the calls, with other thresholds."""
    thresholds: dict[str, Any] = dict(zip(THRESHOLDS, values, strict=True))
    with patch.multiple(agreement, **thresholds):
        everything = _row("all", [each for each in outcomes if not each.case.may_omit])
        calls = _row(CLEAN, [each for each in outcomes if each.case.kind == CLEAN])
    return thresholds | {
        flag: {
            "recall": everything[flag]["recall"],
            "recall_on_calls": calls[flag]["recall"],
            "false_per_hour_of_calls": calls[flag]["false_per_hour"],
        }
        for flag in ("not_heard", "left_out")
    }


def _print_kinds(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="the half that is reported")
    for column in ("audio", "segments", "hours", "inventions", "not_heard", "false/h", "text alone", "false/h"):
        table.add_column(column)
    for column in ("omissions", "left_out", "false/h"):
        table.add_column(column)
    for row in rows:
        cells = [row["kind"], str(row["segments"]), f"{row['hours']:.2f}", str(row["not_heard"]["to_find"])]
        for flag in ("not_heard", "text alone"):
            cells += [_percent(row[flag]["recall"]), str(row[flag]["false_per_hour"])]
        if left_out := row["left_out"]:
            cells += [str(left_out["to_find"]), _percent(left_out["recall"]), str(left_out["false_per_hour"])]
        table.add_row(*cells)
    Console(width=150).print(table, highlight=False)


def _print_grid(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("equal characters", "share of a word", "words", title="the half on which the thresholds were chosen")
    for flag in ("not_heard", "left_out"):
        for column in (flag, "on calls", "false/h of calls"):
            table.add_column(column)
    for row in rows:
        cells = [str(row[name]) for name in THRESHOLDS]
        for flag in ("not_heard", "left_out"):
            figures = row[flag]
            cells += [_percent(figures["recall"]), _percent(figures["recall_on_calls"])]
            cells.append(str(figures["false_per_hour_of_calls"]))
        table.add_row(*cells)
    Console(width=150).print(table, highlight=False)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _show(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        for flag, is_wanted in (("not_heard", outcome.is_invention), ("left_out", outcome.is_omission)):
            if outcome.is_flagged(flag) != is_wanted:
                print(f"{outcome.case.kind}: {flag} {'missed' if is_wanted else 'false'}")
                print(f"  said        {' | '.join(outcome.case.said)}")
                print(f"  text        {outcome.decoding.text}\n  hypothesis  {outcome.decoding.hypothesis}")


if __name__ == "__main__":
    main()
