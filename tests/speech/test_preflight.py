"""What is refused before anything starts, and before a recording's audio is opened."""

import pytest

from speech.engines.base import EngineConfig
from speech.errors import RequestError, UsageError
from speech.models.families import GRANITE_4_0
from speech.preflight import check_request, preflight
from speech.recording import Options

DEMO = "demo/model"


def test_a_good_request_passes_and_names_its_family() -> None:
    assert preflight(EngineConfig(model=DEMO), Options(), loads_here=True) is GRANITE_4_0
    check_request(GRANITE_4_0, "auto", Options(language="de", keywords=("Kuhn",)))


def test_what_the_model_cannot_do_never_reaches_the_engine() -> None:
    with pytest.raises(RequestError) as refused:
        check_request(GRANITE_4_0, "auto", Options(language="it"))
    assert refused.value.code == "unsupported_language"


def test_what_the_drafts_cannot_do_is_refused_with_the_rest() -> None:
    with pytest.raises(RequestError, match="keywords"):
        check_request(GRANITE_4_0, "ctc-accept", Options(keywords=("Kuhn",)))
    with pytest.raises(UsageError, match="keywords"):
        preflight(EngineConfig(model=DEMO, speculation="ctc-accept"), Options(keywords=("Kuhn",)), loads_here=False)


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
