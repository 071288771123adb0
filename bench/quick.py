"""The ratios of the main benches, from short runs: what a change did, in about three minutes.

    python -m bench.quick

Each bench runs once with fewer recordings and rounds than its defaults; the figures of the README come from those.
Prints a ratio a line, both of whose sides are measured in one run; last, one line of JSON.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """One bench: its arguments, and the ratios in its last line."""

    command: str
    ratios: Callable[[Any], dict[str, float]]


def speculation_ratios(figures: Any) -> dict[str, float]:
    return {
        f"{level['mode']} over no drafts, RTFx, {level['concurrency']} at once": level["rtfx_to_off"]
        for level in figures["levels"]
        if level["mode"] != "off"
    }


RUNS = (
    Run(
        "listener --rounds 1 --no-codecs",
        lambda figures: {"Listener over faster-whisper's decoder and VAD": figures["ratio_to_faster_whisper"]},
    ),
    Run(
        "frontend --clips 16 --rounds 1",
        lambda figures: {f"front end over Transformers, {each['clips']} clips": each["ratio"] for each in figures},
    ),
    Run("speculation --modes off,auto --concurrency 16 --rounds 1", speculation_ratios),
    Run(
        "pipeline --copies 2 --rounds 1",
        lambda figures: {"job over the engine alone": figures["median_ratio"]},
    ),
)


def main() -> None:
    start = time.monotonic()
    measured: dict[str, float] = {}
    for run in RUNS:
        bench, *arguments = run.command.split()
        ended = subprocess.run([sys.executable, "-m", f"bench.{bench}", *arguments], capture_output=True, text=True)
        if ended.returncode:
            raise SystemExit(f"bench.{run.command} has failed:\n{ended.stderr}")
        for name, ratio in run.ratios(json.loads(ended.stdout.splitlines()[-1])).items():
            measured[name] = ratio
            print(f"{ratio:6.2f}  {name}", flush=True)
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
