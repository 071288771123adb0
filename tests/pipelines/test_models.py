"""Several models in one run, on a real Ray: each row by the right one, and so after resume and retry."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipelines.job import Job
from pipelines.output import Output
from pipelines.run import retry, run
from pipelines.status import read_status
from speech.engines.base import ClipRequest, EngineConfig
from speech.engines.fake import FakeEngine
from speech.errors import RayscribeError, UsageError
from speech.models.families import Family
from storage.filesystem import Storage
from tests.pipelines.jobs import answers_in, job_of, manifest_of, start_scripted

GRANITE, WHISPER = "ibm-granite/granite-4.0-1b-speech", "openai/whisper-small"
MODELS = [
    {"model": GRANITE, "languages": ["en", "de"], "where": {"tier": ["gold", ""]}},
    {"model": WHISPER},
]
ROWS: list[dict[str, object]] = [
    *({"audio": "agent.flac", "id": f"en-{number}", "duration": 2} for number in range(8)),
    *({"audio": "agent.flac", "id": f"sv-{number}", "language": "sv", "duration": 2} for number in range(12)),
    {"audio": "customer.flac", "id": "de", "language": "de", "tier": "gold"},
    {"audio": "customer.flac", "id": "cheap", "language": "de", "tier": "cheap"},
    {"audio": "agent.flac", "id": "none", "language": "xx"},
    {"audio": "agent.flac", "id": "refused", "language": "sv", "keywords": ["refuse me"]},
    {"audio": "missing.wav", "id": "missing", "language": "sv"},
]


def model_for(row: dict[str, object]) -> str:
    granite = row.get("language", "en") in ("en", "de") and row.get("tier") != "cheap"
    return GRANITE if granite else WHISPER


def models_of(answers: list[dict[str, Any]]) -> dict[str, str]:
    assert len({row["recording_id"] for row in answers}) == len(answers)
    return {row["recording_id"]: row["model"] for row in answers if row["status"] == "ok"}


@pytest.mark.parametrize("engines", [pytest.param(1, marks=pytest.mark.long), 2])  # one after the other, and at once
def test_each_row_goes_to_the_model_that_has_it_and_again(calls: Path, engines: int) -> None:
    output = calls / "out"
    settings = {"models": MODELS, "engines": engines}
    first = ROWS[:3] + ROWS[8:11]
    run(job_of(manifest_of(calls, *first), output, **settings), start_scripted)
    assert models_of(answers_in(output)) == {row["id"]: model_for(row) for row in first}

    manifest = manifest_of(calls, *ROWS)  # has grown
    summary = run(job_of(manifest, output, **settings), start_scripted)
    answers = answers_in(output)
    failed = {"none": "unsupported_language", "refused": "engine_refused", "missing": "not_found"}
    assert models_of(answers) == {row["id"]: model_for(row) for row in ROWS if row["id"] not in failed}
    assert {row["recording_id"]: row["error"]["code"] for row in answers if row["error"]} == failed
    assert "Granite" in next(row["error"]["message"] for row in answers if row["recording_id"] == "none")
    assert (summary.done_before, summary.ok) == (len(first), len(ROWS) - len(first) - len(failed))
    assert {row["recording_id"]: row["text"].split()[0] for row in answers if not row["error"]}["sv-0"] == "sv"

    (calls / "missing.wav").write_bytes((calls / "agent.flac").read_bytes())
    asked = Output(str(output), Storage()).require_job()
    job = Job.from_settings({"manifest": manifest, "output": str(output), **asked["settings"]})
    assert [rule.model for rule in job.rules] == [GRANITE, WHISPER]
    retried = retry(job, start_scripted)
    assert (retried.ok, retried.failed.total()) == (1, 2)
    answers = answers_in(output)
    assert models_of(answers)["missing"] == WHISPER
    assert {row["recording_id"]: row["attempt"] for row in answers if row["recording_id"] in failed} == dict.fromkeys(
        failed, 2
    )
    report = json.loads((output / "run.json").read_text())
    assert [each["model"] for each in report["config"]["models"]] == [GRANITE, WHISPER]
    assert report["models"] == {WHISPER: {"ok": 1, "failed": 1}, GRANITE: {"ok": 0, "failed": 1}}
    status = read_status(str(output), {})
    assert status.by_model == {GRANITE: 9, WHISPER: 14}


def speaking(name: str, language: str, **cells: object) -> dict[str, object]:
    row = {"audio": "agent.flac", "id": name, "language": "auto", "duration": 2, "keywords": [f"speaks {language}"]}
    return row | cells


@pytest.mark.parametrize("engines", [pytest.param(1, marks=pytest.mark.long), 2])
def test_whisper_detects_the_language_and_granite_transcribes_its_own(
    calls: Path, engines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.run.WORK_ROWS_PER_BLOCK", 2)
    rows: list[dict[str, object]] = [
        *(speaking(f"en-{number}", "en") for number in range(3)),
        *(speaking(f"sv-{number}", "sv") for number in range(3)),
        speaking("words", "de", word_timestamps=True, queue="billing"),  # which Whisper does not have
        speaking("no-words", "sv", word_timestamps=True),
        speaking("cheap", "de", tier="cheap"),
        speaking("translated", "en", task="translate"),
        {"audio": "agent.flac", "id": "asked", "duration": 2},
        {"audio": "silence.wav", "id": "silent", "language": "auto"},
    ]
    soundfile.write(calls / "silence.wav", np.zeros(16_000, np.float32), 16_000)
    output, manifest = calls / "out", manifest_of(calls, *rows)
    summary = run(job_of(manifest, output, models=MODELS, engines=engines), start_scripted)
    answers = {row["recording_id"]: row for row in answers_in(output)}
    assert (len(answers), summary.ok, summary.failed) == (len(rows), len(rows) - 1, {"unsupported_option": 1})
    by_granite = {"en-0", "en-1", "en-2", "words", "translated", "asked"}
    assert {name for name, row in answers.items() if row["model"] == GRANITE} == by_granite
    told = {name: row["language"] for name, row in answers.items()}
    assert (told["en-0"], told["sv-0"], told["words"], told["cheap"]) == ("en", "sv", "de", "de")
    assert answers["en-0"]["text"] == "en speaks en"
    for name in ("en-0", "sv-0", "words", "no-words", "cheap"):
        assert answers[name]["language_probability"] == pytest.approx(0.9)
    assert answers["asked"]["language_probability"] is None
    assert json.loads(answers["words"]["metadata"]) == {"queue": "billing"}
    assert answers["words"]["segments"][0]["words"]
    assert answers["translated"]["task"] == "transcribe"  # it was English already
    assert (answers["silent"]["language"], answers["silent"]["flags"]) == ("auto", ["no_speech"])
    assert answers["no-words"]["error"]["code"] == "unsupported_option"


def test_a_run_that_ends_before_the_second_pass_loses_nothing(calls: Path) -> None:
    output, manifest = calls / "out", manifest_of(calls, speaking("en", "en"), speaking("sv", "sv"))
    job = job_of(manifest, output, models=MODELS)
    with pytest.raises(RayscribeError, match="no such engine here"):
        run(job, refuse_granite)
    assert models_of(answers_in(output)) == {"sv": WHISPER}
    run(job, start_scripted)
    assert models_of(answers_in(output)) == {"sv": WHISPER, "en": GRANITE}


def refuse_granite(config: EngineConfig, family: Family) -> FakeEngine:
    if config.model == GRANITE:
        raise ImportError("no such engine here")
    return start_scripted(config, family)


def test_other_rules_on_the_same_output_are_refused(calls: Path) -> None:
    output, manifest = calls / "out", manifest_of(calls, *ROWS[:1])
    run(job_of(manifest, output, models=MODELS), start_scripted)
    for changed in ({"models": MODELS[1:]}, {"model": GRANITE}):
        with pytest.raises(UsageError, match="model") as refused:
            run(job_of(manifest, output, **changed), start_scripted)
        assert refused.value.code == "changed_settings"


def refuse_whisper(config: EngineConfig, family: Family) -> FakeEngine:
    if config.model == WHISPER:
        raise ImportError("no such engine here")
    return start_scripted(config, family)


def test_an_engine_that_cannot_start_ends_the_run_of_all(calls: Path) -> None:
    slow: list[dict[str, object]] = [
        {"audio": "agent.flac", "id": f"{number}", "keywords": ["take your time"]} for number in range(100)
    ]
    job = job_of(manifest_of(calls, *ROWS, *slow), calls / "out", models=MODELS, engines=2)
    with pytest.raises(RayscribeError, match="no such engine here"):
        run(job, refuse_whisper)
    assert read_status(str(calls / "out"), {}).ok < 100  # the other was stopped


async def take_a_while(clip: ClipRequest) -> None:
    await asyncio.sleep(0.1)


def start_slow(config: EngineConfig, family: Family) -> FakeEngine:
    return FakeEngine(lambda clip: str(os.getpid()), before=take_a_while)


def test_a_model_gets_the_engines_of_another_that_has_ended(calls: Path) -> None:
    rows: list[dict[str, object]] = [
        {"audio": "agent.flac", "id": "first"},
        *({"audio": "agent.flac", "id": f"{number}", "language": "sv", "duration": 1} for number in range(400)),
    ]
    job = job_of(manifest_of(calls, *rows), calls / "out", models=MODELS, engines=2, concurrent_clips=1)
    run(job, start_slow)
    processes: dict[str, set[str]] = {GRANITE: set(), WHISPER: set()}
    for row in answers_in(calls / "out"):
        processes[row["model"]] |= set(row["text"].split())
    assert (len(processes[GRANITE]), len(processes[WHISPER])) == (1, 2)


@pytest.mark.engine
@pytest.mark.long
def test_real_engines_of_several_kinds_share_a_run(calls: Path) -> None:
    """Granite in vLLM, its encoder alone, and Whisper, at once; Whisper detects the languages."""
    from testing.whisper_checkpoint import random_whisper

    whisper = str(calls / "whisper")
    random_whisper(calls / "whisper")
    models = [
        {"model": "demo/model", "engine": "encoder", "where": {"tier": "cheap"}},
        {"model": "demo/model", "languages": "en", "kv_cache_gb": 0.25},
        {"model": whisper, "engine": "transformers"},
    ]
    rows: list[dict[str, object]] = [
        {"audio": "agent.flac", "id": "cheap", "tier": "cheap"},
        {"audio": "agent.flac", "id": "granite"},
        {"audio": "agent.flac", "id": "whisper", "language": "sv", "duration": 2},
        {"audio": "agent.flac", "id": "auto", "language": "auto", "duration": 2},
    ]
    run(job_of(manifest_of(calls, *rows), calls / "out", models=models, engines=3, concurrent_clips=4))
    answers = {row["recording_id"]: row for row in answers_in(calls / "out")}
    assert {row["status"] for row in answers.values()} == {"ok"}
    assert answers["granite"]["model"] == answers["cheap"]["model"] == "demo/model"
    assert answers["granite"]["usage"]["prompt_tokens"] > 0
    assert answers["cheap"]["usage"]["prompt_tokens"] == 0  # no language model
    assert answers["whisper"]["model"] == whisper
    told = answers["auto"]
    assert told["model"] == ("demo/model" if told["language"] == "en" else whisper)
    assert 0.01 <= told["language_probability"] <= 1
