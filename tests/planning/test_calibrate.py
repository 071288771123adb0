"""Calibration measures the machine that it runs on."""

from pathlib import Path

import pytest

from planning import calibrate
from planning.rates import default_rates
from speech.engines.base import EngineConfig
from speech.errors import UsageError
from testing.pacing import paced

DATA = Path(__file__).parents[2] / "testing" / "data"
CLIP_RTFX, ENGINE_RTFX = 200.0, 1000.0


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LISTEN_FOR_S": 2.0, "DECODE_FOR_S": 1.0, "ALONE_FOR_S": 1.0, "DRIVEN": 40}.items():
        monkeypatch.setattr(calibrate, name, value)


@pytest.mark.usefixtures("brief")
def test_rates_are_measured_here(ray_here: None, tmp_path: Path) -> None:
    rates = calibrate.calibrate(str(DATA), EngineConfig(), default_rates("A100"), paced(ENGINE_RTFX, CLIP_RTFX))
    assert rates.clip_rtfx.value == pytest.approx(CLIP_RTFX, rel=0.5)
    assert 2 * CLIP_RTFX < rates.engine_rtfx.value <= 1.1 * ENGINE_RTFX
    assert rates.listener_rtfx.value > 1
    assert 0 < rates.driver_block_s.value < 0.5
    measured = (rates.listener_rtfx, rates.engine_rtfx, rates.driver_block_s, rates.engine_start_s)
    assert all("measured here" in rate.source for rate in measured)
    assert rates.commit_s == default_rates("A100").commit_s


def test_recordings_without_speech_are_refused(brief: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "drive", lambda rates: {})
    (tmp_path / "empty.wav").touch()
    with pytest.raises(UsageError) as refused:
        calibrate.calibrate(str(tmp_path), EngineConfig(), default_rates("A100"), paced(ENGINE_RTFX, CLIP_RTFX))
    assert refused.value.code == "bad_manifest"
