"""``rayscribe plan``, as a user calls it."""

import json
from pathlib import Path

import pytest

from planning.rates import default_rates, load_rates
from rayscribe import main


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_plan_says_time_cost_and_what_limits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["plan", "--hours", "5600", "--gpu", "A100", "--gpus", "1", "--price", "2"]) == 0
    out = shown(capsys)
    assert "limited by engines" in out
    assert "without queues and faults" in out
    assert "for 1,000 hours of audio" in out
    assert "Open ASR Leaderboard" in out


def test_rates_of_a_file_are_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    rates = json.loads(default_rates("A100").to_json())
    rates["listener_rtfx"] = {"value": 1.5, "source": "measured on a slow machine"}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    assert main(["plan", "--hours", "10", "--rates", str(tmp_path / "rates.json")]) == 0
    out = shown(capsys)
    assert "limited by Listeners" in out
    assert "measured on a slow machine" in out


def test_measured_rates_are_written_where_no_folder_is_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("planning.calibrate.calibrate", lambda uri, config, rates: rates)
    rates = str(tmp_path / "measured" / "rates.json")
    assert main(["plan", "--hours", "10", "--calibrate", "calls.jsonl", "--rates", rates]) == 0
    assert load_rates(rates) == default_rates("A100")


def test_what_is_missing_or_wrong_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    assert capsys.readouterr().err == "rayscribe: --hours is missing\n"
    assert main(["plan", "--hours", "-1"]) == 2
    assert "--hours" in capsys.readouterr().err
