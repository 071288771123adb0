"""Errors cross process borders, and their codes are those that are documented."""

import ast
import pickle
from pathlib import Path

import pytest

from serve.http_errors import ENDPOINT_CODES
from speech import errors
from speech.errors import AUDIO_CODES, REQUEST_CODES, RayscribeError

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
