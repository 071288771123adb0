"""What a run says of itself at its end."""

import pytest

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
