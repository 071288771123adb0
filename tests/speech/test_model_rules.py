"""Which model takes which row."""

from typing import Any

import pytest

from speech.errors import RequestError, UsageError
from speech.model_rules import ModelChoice, ModelRule, choose_model
from speech.preflight import preflight_models
from speech.recording import Options

GRANITE, WHISPER, PARAKEET = "ibm-granite/granite-4.0-1b-speech", "openai/whisper-small", "nvidia/parakeet-tdt-0.6b-v3"
RULES = (
    ModelRule(model=PARAKEET, engine="encoder", where={"tier": "Cheap", "priority": [1, 2]}),
    ModelRule(model=GRANITE, languages=("en", "de")),
    ModelRule(model=WHISPER),
)
CHEAP = {"tier": "cheap", "priority": "2"}


@pytest.mark.parametrize(
    ("options", "row", "model"),
    [
        ({}, {}, GRANITE),
        ({"language": "de"}, {}, GRANITE),
        ({"language": "fr"}, {}, WHISPER),  # Granite has it, but is not to take it
        ({"language": "nl"}, {}, WHISPER),
        ({"language": "de"}, CHEAP, PARAKEET),
        ({"language": "de"}, CHEAP | {"priority": 3}, GRANITE),
        ({"language": "de"}, {"tier": "cheap"}, GRANITE),
        ({"language": "ja"}, CHEAP, WHISPER),  # which the cheap one does not have
        ({"keywords": ("Kuhn",)}, CHEAP, GRANITE),
        ({"punctuation": True}, {}, WHISPER),
        ({"language": "de", "task": "translate"}, {}, GRANITE),
        ({"language": "nl", "task": "translate"}, {}, WHISPER),
        ({"language": "auto"}, {}, WHISPER),
        ({"language": "auto", "word_timestamps": True}, {}, WHISPER),  # for Granite, once the language is known
        ({"language": "auto"}, CHEAP, WHISPER),
        ({"language": "auto", "task": "translate"}, {}, WHISPER),
    ],
)
def test_the_first_model_that_has_it_takes_the_row(options: dict[str, Any], row: dict[str, Any], model: str) -> None:
    assert RULES[choose_model(RULES, Options(**options), row)].model == model
    assert RULES[ModelChoice(RULES, Options()).of({**row, **options})].model == model


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        ({"language": "xx"}, "unsupported_language", "Granite"),
        ({"language": "xx"}, "unsupported_language", "Whisper"),
        ({"language": "fr", "word_timestamps": True}, "unsupported_option", "Whisper has no word_timestamps"),
        ({"task": "translate", "target_language": "ko"}, "unsupported_task", "en"),
    ],
)
def test_a_row_that_none_has_fails_with_what_each_lacks(options: dict[str, Any], code: str, named: str) -> None:
    with pytest.raises(RequestError, match=named) as refused:
        choose_model(RULES, Options(**options), {})
    assert refused.value.code == code
    assert ModelChoice(RULES, Options()).of(options) == 0  # where it fails


def test_a_row_that_no_rule_matches_fails() -> None:
    with pytest.raises(RequestError, match="without") as refused:
        choose_model(RULES[:1], Options(), {"tier": "gold"})
    assert refused.value.code == "no_model"


@pytest.mark.parametrize("rules", [RULES[:2], RULES[1:2]])
def test_without_whisper_no_language_is_detected(rules: tuple[ModelRule, ...]) -> None:
    with pytest.raises(RequestError, match="cannot detect the language"):
        choose_model(rules, Options(language="auto"), CHEAP)


def test_one_model_is_asked_for_all_before_the_language_is_known() -> None:
    with pytest.raises(RequestError, match="word_timestamps"):
        choose_model(RULES[2:], Options(language="auto", word_timestamps=True), {})


def test_the_run_s_options_hold_where_a_row_has_none() -> None:
    choice = ModelChoice(RULES, Options(language="nl"))
    assert [choice.of(row) for row in ({}, {"language": "en"}, {"language": None}, {"language": 3})] == [2, 1, 2, 0]


def test_rules_are_read_from_yaml() -> None:
    rule = ModelRule(model=WHISPER, languages=[False, "sv"])
    assert rule.languages == ("no", "sv")
    assert ModelRule(model=WHISPER, languages="any").languages == ()


def test_a_language_that_its_model_lacks_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"'models'.*is to take nl"):
        preflight_models([ModelRule(model=GRANITE, languages=("nl",))], Options(), loads_here=False)


def test_defaults_that_one_of_the_models_has_are_accepted() -> None:
    preflight_models(RULES, Options(language="nl"), loads_here=False)
    with pytest.raises(UsageError, match=r"Parakeet.*Whisper"):
        preflight_models(RULES, Options(language="xx"), loads_here=False)
