"""What is refused before anything starts, and before a recording's audio is opened."""

import pytest

from speech.engines.base import EngineConfig
from speech.errors import UsageError
from speech.models.families import GRANITE_4_0
from speech.preflight import preflight
from speech.recording import Options

DEMO = "demo/model"


def test_a_good_request_passes_and_names_its_family() -> None:
    assert preflight(EngineConfig(model=DEMO), Options(), loads_here=True) is GRANITE_4_0


def test_defaults_that_the_model_cannot_serve_are_refused() -> None:
    with pytest.raises(UsageError) as refused:
        preflight(EngineConfig(model=DEMO), Options(language="it"), loads_here=False)
    assert refused.value.code == "unsupported_language"


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (EngineConfig(model="no-model"), "unknown_model"),
        (EngineConfig(model=DEMO, engine="transformers", speculation="ctc"), "bad_option"),
    ],
)
def test_an_engine_that_could_not_start_is_refused(config: EngineConfig, code: str) -> None:
    with pytest.raises(UsageError) as refused:
        preflight(config, loads_here=True)
    assert refused.value.code == code
