"""Word error rate of this code and of an earlier commit's over a made set of calls.

    git worktree add /tmp/before COMMIT
    python -m bench.quality --before /tmp/before [--calls 200] [--model demo/model]

The sample calls with a reference (demo/samples; more with --manifest) are changed by level, noise and codec: the
same set for the same seed. Each code transcribes them by its own ``rayscribe transcribe``. Printed are the word error
rates, in all and by codec, and the difference with its 95 % interval (bootstrap over calls, paired). Without --before,
only the rates of this code. Last, one line of JSON.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr
from rich.console import Console
from rich.table import Table

from bench.channels import CODECS
from pipelines import manifest
from pipelines.evaluate import Score, evaluate
from speech.audio.decoding import open_audio
from storage.filesystem import Storage
from testing.synthetic_audio import RATE, ffmpeg

LEVELS_DB = (0.0, -10.0, -20.0)
NOISES_DBFS = (None, None, -70.0, -60.0)  # the demo model was trained on clean speech
CODECS_HERE = CODECS | {
    "AMR 12.2 kbit/s": lambda samples: ffmpeg(samples.mean(axis=1), "amr", "libopencore_amrnb", RATE, bit_rate=12_200),
    "FLAC": lambda samples: ffmpeg(samples, "flac", "flac", RATE),
}
ENGLISH = "en"
BOOTSTRAPS = 2000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="working tree of an earlier commit")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--manifest", nargs="+", default=["demo/samples/manifest.jsonl"])
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args(arguments)
    codes = {"now": Path(__file__).parent.parent}
    if parsed.before:
        codes["before"] = parsed.before.resolve()
    with tempfile.TemporaryDirectory() as folder:
        codecs = make_calls(Path(folder), parsed.manifest, parsed.calls, np.random.default_rng(parsed.seed))
        scores = {
            name: transcribe(code, Path(folder), Path(folder, name), Path(parsed.model).resolve())
            for name, code in codes.items()
        }
    report(scores, codecs)


def make_calls(folder: Path, manifests: Sequence[str], count: int, rng: np.random.Generator) -> dict[str, str]:
    """Writes the calls and their manifest; returns the codec of each."""
    storage, bases = Storage({}), []
    for _, row in itertools.chain.from_iterable(manifest.read(uri, storage) for uri in manifests):
        if (
            row.get("text")
            and row.get("language", ENGLISH) == ENGLISH
            and row.get("task", "transcribe") == "transcribe"
        ):
            with open_audio(row["audio"]) as audio:
                bases.append((row, soxr.resample(np.concatenate([*audio.blocks()]), audio.sample_rate, RATE)))
    codecs, rows = itertools.cycle(CODECS_HERE), []
    of_call = {}
    for number in range(count):
        row, samples = bases[number % len(bases)]
        codec, level_db = next(codecs), rng.choice(LEVELS_DB)
        noise_dbfs = NOISES_DBFS[rng.integers(len(NOISES_DBFS))]
        changed = samples * 10 ** (level_db / 20)
        if noise_dbfs is not None:
            changed = changed + 10 ** (noise_dbfs / 20) * rng.standard_normal(samples.shape)
        name = f"call-{number}"
        (folder / name).write_bytes(CODECS_HERE[codec](np.clip(changed, -1, 1).astype(np.float32)))
        rows.append({"audio": name, "id": name, "text": row["text"], **_options(row)})
        of_call[name] = codec
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return of_call


def _options(row: dict[str, object]) -> dict[str, object]:
    return {name: row[name] for name in ("keywords", "channels", "speakers") if row.get(name)}


def transcribe(code: Path, calls: Path, output: Path, model: Path) -> dict[str, Score]:
    """The scores of the calls, by id, as the code in a working tree transcribes them."""
    command = [sys.executable, "-m", "rayscribe", "transcribe", str(calls / "manifest.jsonl")]
    ended = subprocess.run([*command, "--model", str(model), "--output", str(output)], cwd=code)
    if ended.returncode not in (0, 3):
        raise SystemExit(f"the run of {code} has failed")
    found = evaluate(str(output), str(calls / "manifest.jsonl"), {})
    return {score.recording_id: score for score in found.scores}


def report(scores: dict[str, dict[str, Score]], codecs: dict[str, str]) -> None:
    table = Table("calls", *(f"WER {name}, %" for name in scores), "failed")
    figures: dict[str, object] = {}
    for kind in ("all", *CODECS_HERE):
        ids = [call for call, codec in codecs.items() if kind in ("all", codec)]
        rates = {name: 100 * _rate(scored, ids) for name, scored in scores.items()}
        failed = {name: sum(call not in scored for call in ids) for name, scored in scores.items()}
        table.add_row(kind, *(f"{rate:.2f}" for rate in rates.values()), " ".join(map(str, failed.values())))
        figures[kind] = {"wer": rates, "failed": failed}
    Console().print(table)
    if "before" in scores:
        low, middle, high = _difference(scores["now"], scores["before"], [*codecs])
        print(f"now minus before: {middle:+.2f} points of WER, 95 % of bootstraps from {low:+.2f} to {high:+.2f}")
        figures["difference"] = {"low": low, "mean": middle, "high": high}
    print(json.dumps(figures))


def _rate(scored: dict[str, Score], ids: Sequence[str]) -> float:
    errors, words = _counts(scored, ids)
    return float(errors.sum() / max(1, words.sum()))


def _counts(scored: dict[str, Score], ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Word errors and reference words of each call."""
    reference = {call: len(score.reference.split()) for call, score in scored.items()}
    outputs = [scored[call].words if call in scored else None for call in ids]
    errors = [words.substitutions + words.deletions + words.insertions if words else 0 for words in outputs]
    return np.array(errors), np.array([reference.get(call, 0) for call in ids])


def _difference(now: dict[str, Score], before: dict[str, Score], ids: Sequence[str]) -> tuple[float, float, float]:
    """Points of WER: 2.5th percentile, mean, 97.5th percentile, over calls that both have."""
    both = [call for call in ids if call in now and call in before]
    (errors_now, words), (errors_before, _) = _counts(now, both), _counts(before, both)
    drawn = np.random.default_rng(0).integers(len(both), size=(BOOTSTRAPS, len(both)))
    differences = 100 * (errors_now - errors_before)[drawn].sum(axis=1) / words[drawn].sum(axis=1)
    low, high = np.percentile(differences, [2.5, 97.5])
    mean = 100 * float((errors_now - errors_before).sum() / words.sum())
    return float(low), mean, float(high)


if __name__ == "__main__":
    main()
