"""The simulator of ``rayscribe plan`` against real runs of the job, at three sizes: its error.

    python -m bench.plan [--manifest M] [--copies 2 4 8] [--engine-rtfx 60 2000] [--listeners 1]

The engine is one that needs time as a real one does and no processor (``testing.pacing``), so that a small machine can
play one with a GPU; all else is real: Ray, Listeners, the output. The rates of Listener and driver are measured first,
as ``rayscribe plan --calibrate`` does. Compared are the seconds of work that run.json has. Prints a table and, last,
one line of JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.job import Job
from pipelines.run import run
from planning.calibrate import Heard, drive, fit_line, listen
from planning.rates import Rate, Rates, default_rates
from planning.scenario import Faults, Machines, Workload
from planning.simulation import simulate
from speech.engines.base import EngineConfig
from testing.pacing import paced

TARGET = 0.15
CLIP_RTFX = 20.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--copies", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument(
        "--engine-rtfx", type=float, nargs="+", default=[60.0, 2000.0], help="of the engine that is played"
    )
    parser.add_argument("--listeners", type=int, default=1)
    parsed = parser.parse_args(arguments)
    heard = listen(parsed.manifest, EngineConfig())
    measured = _measured(heard)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for engine_rtfx in parsed.engine_rtfx:
            rates = replace(measured, engine_rtfx=Rate(engine_rtfx, "played"), clip_rtfx=Rate(CLIP_RTFX, "played"))
            for copies in parsed.copies:
                results.append(
                    _compare(heard, rates, copies, parsed.listeners, Path(folder, f"{engine_rtfx}-{copies}"))
                )
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    table = Table("engine, RTFx", "recordings", "run, s", "simulated, s", "error")
    for each in results:
        table.add_row(
            f"{each['engine_rtfx']:.0f}",
            str(each["recordings"]),
            f"{each['run_s']:.1f}",
            f"{each['simulated_s']:.1f}",
            f"{each['error']:+.1%}",
        )
    Console().print(table)
    worst = max(abs(each["error"]) for each in results)
    print(f"largest error {worst:.1%}; target {TARGET:.0%}")
    print(json.dumps({"rates": json.loads(measured.to_json()), "runs": results}))


def _measured(heard: Sequence[Heard]) -> Rates:
    rtfx, recording_s = fit_line([each.listened.duration_s for each in heard], [each.took_s for each in heard])
    rates = default_rates("A100")
    return replace(
        rates,
        listener_rtfx=Rate(rtfx, "measured"),
        recording_s=Rate(recording_s, "measured"),
        commit_s=Rate(0.02, "a local disk"),
        **drive(rates),
    )


def _compare(heard: Sequence[Heard], rates: Rates, copies: int, listeners: int, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    rows = [
        {"audio": each.recording.audio, "id": f"{each.recording.id}-{copy}"} for copy in range(copies) for each in heard
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = Job.from_settings({"manifest": f"{folder}/manifest.jsonl", "output": f"{folder}/out", "listeners": listeners})
    summary = run(job, paced(rates.engine_rtfx.value, rates.clip_rtfx.value))
    speech_s = sum((clip.end_s - clip.start_s) for each in heard for clip in each.listened.clips)
    durations = [each.listened.duration_s for each in heard] * copies
    clips = sum(len(each.listened.clips) for each in heard)
    workload = Workload(
        recordings=len(durations),
        mean_s=sum(durations) / len(durations),
        speech_share=speech_s * copies / sum(durations),
        clip_s=speech_s / clips,
    )
    machines = Machines(engines=1, listeners=listeners, concurrent_clips=job.engine_config.concurrent_clips)
    simulated = simulate(workload, machines, rates, Faults(), durations=durations)
    return {
        "engine_rtfx": rates.engine_rtfx.value,
        "recordings": len(durations),
        "run_s": summary.work_s,
        "simulated_s": simulated.work_s,
        "error": simulated.work_s / summary.work_s - 1,
    }


if __name__ == "__main__":
    main()
