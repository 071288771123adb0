"""Errors cross process borders, and their codes are those that are documented."""

import ast
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.job import Job
from serve.form import SpeechForm
from serve.http_errors import ENDPOINT_CODES
from serve.settings import ServeSettings
from speech import errors
from speech.errors import AUDIO_CODES, REQUEST_CODES, RayscribeError
from speech.recording import Options, Recording

ROOT = Path(__file__).parents[2]
BULK = ("speech", "pipelines", "cluster")
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RayscribeError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_a_pickle(kind: type[RayscribeError]) -> None:
    error = kind("some_code", "what was tried")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.code, copy.message, copy.stage) == (error.code, error.message, error.stage)
    assert str(copy) == "what was tried [some_code]"


@pytest.mark.parametrize(
    ("kind", "rooms", "documented"),
    [
        ("AudioError", (*BULK, "serve"), AUDIO_CODES),
        ("RequestError", BULK, REQUEST_CODES),
        ("RequestError", ("serve",), REQUEST_CODES | ENDPOINT_CODES),
    ],
)
def test_only_documented_codes_are_raised(kind: str, rooms: tuple[str, ...], documented: frozenset[str]) -> None:
    """Users branch on codes: one that is raised somewhere and listed nowhere is a code nobody handles."""
    raised = {
        call.args[0].value
        for room in rooms
        for file in (ROOT / room).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == kind
        if call.args and isinstance(call.args[0], ast.Constant)
    }
    assert raised
    assert raised <= documented


def _refusals() -> Iterator[str]:
    """The messages for values of wrong kinds, of every option, form field and column."""
    wrong = ("none", "", -1, 1e30, float("nan"), [1], ["x"] * 40, {"a": 1}, True, "[a b]")
    builders: dict[Callable[[str, object], object], set[str]] = {
        lambda name, value: Job.from_settings({"manifest": "m", "output": "o", name: value}): set(Job.flat_fields()),
        lambda name, value: ServeSettings.from_settings({name: value}): set(ServeSettings.flat_fields()),
        lambda name, value: Recording.from_row({"audio": "a", name: value}, Options()): {
            *Recording.model_fields,
            *Options.model_fields,
        },
        lambda name, value: SpeechForm.from_fields([(name, str(value))], "transcribe"): set(SpeechForm.model_fields),
    }
    for build, names in builders.items():
        for name in names:
            for value in wrong:
                try:
                    build(name, value)
                except RayscribeError as refused:
                    yield refused.message


def test_refusals_are_in_our_own_words() -> None:
    messages = set(_refusals())
    assert len(messages) > 100
    assert not [each for each in messages if re.search("Input should|Field required|Value error|valid|Tuple", each)]
