"""An engine that needs no model, and a job that runs on it: for tests of the job itself."""

import asyncio
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from pipelines.job import Job
from pipelines.transcribe import run
from speech.engine import ClipRequest, Decoding, EngineConfig
from speech.errors import EngineError
from speech.models import Family
from speech.transcript import Usage

# What kills the engine waits so long, for others to be in flight with it; those that take their time still are then.
COMPANY_S = 0.3
DATA = Path(__file__).parent.parent / "speech" / "data"


class EchoEngine:
    """Says what it was asked: the language and the keywords. Fails in the way that a keyword asks for.

    Args:
        deaths: a file in which each recording that kills the engine is noted, a line each time.
    """

    def __init__(self, deaths: Path | None = None) -> None:
        self._deaths = deaths

    async def decode(self, clip: ClipRequest) -> Decoding:
        await asyncio.sleep(0)
        if "refuse me" in clip.options.keywords:
            raise EngineError("engine_refused", "as asked")
        if "break me" in clip.options.keywords:
            raise ZeroDivisionError("a fault of ours")
        if "kill me" in clip.options.keywords:
            await asyncio.sleep(COMPANY_S)
            if self._deaths:
                with self._deaths.open("a") as file:
                    file.write(f"{clip.id.rpartition('/')[0]}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        if "take your time" in clip.options.keywords:
            await asyncio.sleep(2 * COMPANY_S)
        text = " ".join([clip.options.language, *clip.options.keywords])
        return Decoding(text, (1, 2), -0.1, True, usage=Usage(audio_tokens=10, prompt_tokens=20, output_tokens=2))

    async def check_health(self) -> None: ...

    def stop(self) -> None: ...


def start_echo(config: EngineConfig, family: Family, deaths: Path | None = None) -> EchoEngine:
    return EchoEngine(deaths)


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
    return table.arrow().read_all().to_pylist()


def transcribe(manifest: str, output: Path, **settings: object) -> list[dict[str, Any]]:
    """Runs the job and reads its output."""
    run(job_of(manifest, output, **settings), start_echo)
    return answers_in(output)
