"""Rates: measured, read, given; and the fit of a Listener's."""

from dataclasses import replace
from pathlib import Path

import pytest

from planning.calibrate import fit_line
from planning.rates import Rate, default_rates, load_rates
from planning.settings import PlanSettings
from speech.errors import UsageError


def test_rates_are_read_as_they_were_written(tmp_path: Path) -> None:
    rates = replace(default_rates("A100"), engine_rtfx=Rate(1234.5, "measured here"))
    path = tmp_path / "rates.json"
    path.write_text(rates.to_json())
    assert load_rates(str(path)) == rates


@pytest.mark.parametrize("content", [None, "no JSON", "{}", '{"engine_rtfx": 3}'])
def test_a_file_without_rates_is_refused_with_the_command_that_makes_one(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "rates.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError) as refused:
        load_rates(str(path))
    assert refused.value.code == "bad_rates"
    assert "--calibrate" in refused.value.message


def test_a_gpu_that_was_not_measured_is_named() -> None:
    assert "not measured on T4" in default_rates("T4").engine_rtfx.source
    assert "not measured" not in default_rates("A100").engine_rtfx.source


def test_given_rates_win() -> None:
    settings = PlanSettings.from_settings({"hours": 10, "engine_rtfx": 99, "gpu": "T4"})
    rates = settings.known_rates()
    assert rates.engine_rtfx == Rate(99.0, "given")
    assert rates.listener_rtfx == default_rates("T4").listener_rtfx


def test_kinds_of_gpus_may_be_written_in_any_case() -> None:
    assert PlanSettings.from_settings({"hours": 10, "gpu": "h200"}).gpu == "H200"


def test_eight_cores_a_gpu_unless_given() -> None:
    assert PlanSettings.from_settings({"hours": 1, "gpus": 3}).machines().listeners == 24
    assert PlanSettings.from_settings({"hours": 1, "gpus": 3, "cpus": 5}).machines().listeners == 5


@pytest.mark.parametrize(
    ("durations", "took", "rtfx", "constant"),
    [
        ([10.0, 100.0, 200.0], [0.2, 1.1, 2.1], 100.0, 0.1),
        ([10.0, 10.0, 10.0], [0.2, 0.2, 0.2], 50.0, 0.0),  # alike: no line
        ([10.0], [0.1], 100.0, 0.0),
        ([10.0, 100.0, 200.0], [0.05, 1.0, 2.2], 310 / 3.25, 0.0),  # the line would begin below zero
    ],
)
def test_a_listener_s_time_is_a_line(durations: list[float], took: list[float], rtfx: float, constant: float) -> None:
    assert fit_line(durations, took) == (pytest.approx(rtfx), pytest.approx(constant, abs=1e-9))
