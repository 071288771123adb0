"""A job on an engine that needs no model and fails as its keywords say: for tests of the job itself."""

import asyncio
import json
import math
import os
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from pipelines.job import Job
from pipelines.run import run
from speech.engines.base import ClipRequest, EngineConfig
from speech.engines.fake import FakeEngine, reply_with_options
from speech.errors import EngineError
from speech.models.families import Family

# What kills the engine waits so long, for others to be in flight with it; those that take their time still are then.
COMPANY_S = 0.3
DATA = Path(__file__).parents[2] / "testing" / "data"


async def obey_keywords(clip: ClipRequest, deaths: Path | None = None) -> None:
    """Fails a request in the way that one of its keywords asks for.

    Args:
        deaths: a file to which the id of each recording that kills the engine is appended, a line each time.
    """
    if "refuse me" in clip.options.keywords:
        raise EngineError("engine_refused", "as asked")
    if "break me" in clip.options.keywords:
        raise ZeroDivisionError("a fault of ours")
    if "kill me" in clip.options.keywords:
        await asyncio.sleep(COMPANY_S)
        if deaths:
            with deaths.open("a") as file:
                file.write(f"{clip.recording_id}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if "take your time" in clip.options.keywords:
        await asyncio.sleep(2 * COMPANY_S)


async def wait_for_turn(clip: ClipRequest, limit: Path) -> None:
    """Waits while the number at the end of the recording's id is not below the number in the file ``limit``."""
    while int(clip.recording_id.rpartition("-")[2]) >= int(limit.read_text()):
        await asyncio.sleep(0.05)


def spoken(clip: ClipRequest) -> dict[str, float]:
    """The language that a keyword names: "speaks de"."""
    named = [keyword for keyword in clip.options.keywords if keyword.startswith("speaks ")]
    language = named[0].removeprefix("speaks ") if named else "en"
    return {language: math.log(0.9), "en" if language != "en" else "de": math.log(0.1)}


def scripted_engine() -> FakeEngine:
    """Says what it was asked, and fails as ``obey_keywords`` has it."""
    return FakeEngine(reply_with_options, before=obey_keywords, languages=spoken)


def start_scripted(config: EngineConfig, family: Family, deaths: Path | None = None) -> FakeEngine:
    return FakeEngine(reply_with_options, before=partial(obey_keywords, deaths=deaths), languages=spoken)


@dataclass(frozen=True)
class Finished:
    """A run that has ended."""

    folder: Path  # of the calls and their manifest
    output: Path
    rows: list[dict[str, Any]]  # of the manifest
    answers: list[dict[str, Any]]  # of the output


def make_calls(folder: Path) -> None:
    """Fills a folder with audio, good and bad."""
    for name in ("agent", "customer"):
        shutil.copy(DATA / f"{name}.flac", folder)
    (folder / "empty.wav").touch()
    (folder / "notes.wav").write_text("not audio at all\n" * 100)


def manifest_of(folder: Path, *rows: dict[str, object]) -> str:
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def job_of(manifest: str, output: Path, **settings: object) -> Job:
    return Job.from_settings({"manifest": manifest, "output": str(output), **settings})


def answers_in(output: Path) -> list[dict[str, Any]]:
    """The output, read as a user would."""
    table = duckdb.sql(f"SELECT * FROM read_parquet('{output}/transcripts/*/*.parquet', hive_partitioning = true)")
    assert table is not None
    return table.arrow().read_all().to_pylist()


def transcribe(manifest: str, output: Path, **settings: object) -> list[dict[str, Any]]:
    """Runs the job and reads its output."""
    run(job_of(manifest, output, **settings), start_scripted)
    return answers_in(output)
