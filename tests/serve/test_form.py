"""Fields of the form that are lists, in the spellings of clients."""

import pytest

from serve.form import SpeechForm
from speech.errors import RequestError
from speech.models.families import GRANITE_4_0


def form(*fields: tuple[str, str]) -> SpeechForm:
    return SpeechForm.from_fields([("model", "m"), *fields], "transcribe")


@pytest.mark.parametrize(
    "fields",
    [
        [("speakers", "agent,customer")],
        [("speakers", '["agent", "customer"]')],
        [("speakers", "agent"), ("speakers", "customer")],
        [("speakers[]", "agent"), ("speakers[]", "customer")],
    ],
)
def test_speakers(fields: list[tuple[str, str]]) -> None:
    assert form(*fields).recording("id", "a.wav", GRANITE_4_0).speakers == ("agent", "customer")


@pytest.mark.parametrize(
    "fields",
    [
        [("keywords", "Kuhn, Acme")],
        [("keywords", '["Kuhn", "Acme"]')],
        [("keywords[]", "Kuhn"), ("keywords[]", "Acme")],
        [("keywords", '["Kuhn"]'), ("prompt", "Keywords: Acme.")],
    ],
)
def test_keywords(fields: list[tuple[str, str]]) -> None:
    assert form(*fields).keywords == ("Kuhn", "Acme")


def test_brackets_without_a_list_are_refused() -> None:
    for field in ("speakers", "keywords"):
        with pytest.raises(RequestError) as caught:
            form((field, "[agent, customer]"))
        assert caught.value.code in ("bad_field", "bad_keywords")
