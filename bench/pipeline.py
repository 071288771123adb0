"""Overhead of the bulk job: RTFx of the whole pipeline over RTFx of the engine alone.

    python -m bench.pipeline [--model demo/model] [--manifest demo/samples/manifest.jsonl] [--copies 10] [--rounds 3]

Both transcribe the same recordings with the same engine settings on the same machine, in turn, several times. The
pipeline opens and decodes files, runs the VAD, passes clips through Ray and writes Parquet; the bare engine gets the
clips already cut by the Listener, all at once. Loading the model is in neither figure. Prints a table and,
last, one line of JSON.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines import manifest
from pipelines.job import Job
from pipelines.run import run
from speech.engines.base import EngineConfig, start_engine
from speech.errors import RayscribeError
from speech.listener import Listener
from speech.models.checkpoint import family_of
from speech.recording import Options, Recording
from speech.transcriber import Transcriber
from storage.filesystem import Storage


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--copies", type=int, default=10, help="times that each recording is transcribed")
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args(arguments)
    config = EngineConfig(model=parsed.model)
    with tempfile.TemporaryDirectory() as folder:
        rows = _good_rows(parsed.manifest, parsed.model)
        copied = Path(folder, "manifest.jsonl")
        copies = [row | {"id": f"{row['id']}-{copy}"} for copy in range(parsed.copies) for row in rows]
        copied.write_text("".join(json.dumps(row) + "\n" for row in copies))
        bare, pipeline = [], []
        for number in range(parsed.rounds):
            bare.append(asyncio.run(_bare_engine(copies, config)))
            pipeline.append(run(Job(manifest=str(copied), output=f"{folder}/{number}", engine_config=config)).rtfx)
            print(
                f"round {number + 1}: engine {bare[-1]:.2f}, pipeline {pipeline[-1]:.2f}", file=sys.stderr, flush=True
            )
    ratios = [job / engine for job, engine in zip(pipeline, bare, strict=True)]
    table = Table("", "min", "median", "max", title=f"{len(copies)} recordings, {parsed.rounds} rounds")
    for name, figures in (("bare engine, RTFx", bare), ("pipeline, RTFx", pipeline), ("ratio", ratios)):
        table.add_row(name, *(f"{value:.2f}" for value in (min(figures), statistics.median(figures), max(figures))))
    Console().print(table)
    print(json.dumps({"bare_rtfx": bare, "pipeline_rtfx": pipeline, "median_ratio": statistics.median(ratios)}))


def _good_rows(uri: str, model: str) -> list[dict[str, object]]:
    """The rows of a manifest that can be transcribed; the bare engine would never see the others."""
    listener, family = Listener(clip_s=family_of(model).clip_s), family_of(model)
    good = []
    for _, row in manifest.read(uri, Storage()):
        try:
            recording = Recording.from_row(row, Options())
            family.check(recording.options)
            listener.listen(recording)
        except RayscribeError:
            continue
        good.append(row)
    return good


async def _bare_engine(rows: list[dict[str, object]], config: EngineConfig) -> float:
    """RTFx of the engine alone, on clips cut beforehand."""
    family = family_of(config.model)
    listener = Listener(clip_s=family.clip_s)
    recordings = [Recording.from_row(row, Options()) for row in rows]
    listened = [(recording, listener.listen(recording)) for recording in recordings]
    audio_s = sum(each.duration_s for _, each in listened)
    engine = start_engine(config, family)
    transcriber = Transcriber(engine, family, config.model, config.concurrent_clips)
    await transcriber.transcribe(*listened[0])  # warm-up: the first request includes one-time initialisation
    start = time.perf_counter()
    await asyncio.gather(*(transcriber.transcribe(*each) for each in listened))
    elapsed = time.perf_counter() - start
    engine.stop()
    return audio_s / elapsed


if __name__ == "__main__":
    main()
