"""What is refused before anything starts, and before a recording's audio is opened."""

import pytest

from speech.engines.base import EngineConfig
from speech.errors import UsageError
from speech.models.families import GRANITE_4_0, GRANITE_CTC
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
    ("options", "named"),
    [
        (Options(keywords=("Kuhn",)), "has no keywords"),
        (Options(task="translate", target_language="de"), "no translation"),
        (Options(language="ja"), "de, en, es, fr, pt"),
        (Options(speaker_tags=True), "has no speaker_tags"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(options: Options, named: str) -> None:
    config = EngineConfig(model=DEMO, engine="encoder")
    assert preflight(config, Options(language="fr"), loads_here=True) is GRANITE_CTC
    with pytest.raises(UsageError, match=named) as refused:
        preflight(config, options, loads_here=True)
    assert "Granite Speech's CTC head" in refused.value.message


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (EngineConfig(model="no-model"), "unknown_model"),
        (EngineConfig(model=DEMO, engine="transformers", speculation="ctc"), "bad_option"),
        (EngineConfig(model=DEMO, engine="encoder", speculation="ctc"), "bad_option"),
        (EngineConfig(model="openai/whisper-small", engine="encoder"), "bad_engine"),
        (EngineConfig(model="nvidia/parakeet-ctc-1.1b"), "bad_engine"),
        (EngineConfig(model=DEMO, engine="llamacpp", dtype="bfloat16"), "bad_option"),
    ],
)
def test_an_engine_that_could_not_start_is_refused(config: EngineConfig, code: str) -> None:
    with pytest.raises(UsageError) as refused:
        preflight(config, loads_here=True)
    assert refused.value.code == code
