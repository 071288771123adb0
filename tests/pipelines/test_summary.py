"""What a run says of itself at its end."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipelines.rows import RECEIPT
from pipelines.summary import Summary


def test_drafts_are_told_by_what_they_spared(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary()
    summary.usage.update(output_tokens=100, draft_tokens=90, accepted_draft_tokens=75)
    assert summary.as_dict()["acceptance_length"] == 4.0
    assert summary.as_dict()["usage"]["accepted_draft_tokens"] == 75
    summary.print("out")
    assert "75 of 90 tokens accepted, 4.0 tokens a step" in capsys.readouterr().out


def test_without_drafts_a_step_gives_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary()
    assert summary.as_dict()["acceptance_length"] == 0.0  # nothing was written
    summary.usage.update(output_tokens=100)
    assert summary.as_dict()["acceptance_length"] == 1.0
    summary.print("out")
    assert "drafts" not in capsys.readouterr().out


def test_receipts_are_counted_by_status_code_and_model() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    common = {"finished_at": at, "engine_ready_at": at, "usage": {"output_tokens": 3}}
    ok = common | {"status": "ok", "model": "a", "duration_s": 1.5, "speech_s": 0.5}
    failed = common | {"status": "failed", "model": "b", "code": "empty", "duration_s": 9.0}
    summary = Summary()
    for rows in ([ok, failed, ok], [failed | {"usage": None}]):
        summary.add(pa.Table.from_pylist(rows, schema=RECEIPT))
    assert (summary.ok, summary.failed, summary.audio_s, summary.speech_s) == (2, {"empty": 2}, 3.0, 1.0)
    assert summary.models == {"a": {"ok": 2, "failed": 0}, "b": {"ok": 0, "failed": 2}}
    assert summary.usage["output_tokens"] == 9
