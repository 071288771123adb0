"""Which segments are flagged, and which are not."""

import pytest

from speech.quality.flags import segment_flags

REAL = (
    "thank you for calling acme this is kim how can i help you today yes hello i was charged twice for my order "
    "last week and i would like the second payment back if that is possible"
)


def flags_of(
    text: str, seconds: float = 12.0, avg_logprob: float | None = -0.1, complete: bool = True
) -> tuple[str, ...]:
    return segment_flags(text, seconds, avg_logprob, complete)


@pytest.mark.parametrize("text", [REAL, "yes", "yes yes yes yes", "one two three one two three", "四五六七八九十"])
def test_real_speech_is_not_flagged(text: str) -> None:
    assert flags_of(text) == ()


@pytest.mark.parametrize("text", ["thank you " * 20, "na" * 60, "四五" * 60])
def test_a_loop_is_repetition(text: str) -> None:
    assert "repetition" in flags_of(text, seconds=30)


def test_more_text_than_time() -> None:
    assert flags_of(REAL, seconds=2) == ("too_fast",)
    assert flags_of("yes, certainly", seconds=0.3) == ()  # short clips have hardly any silence around the word


def test_speech_without_words() -> None:
    assert flags_of("", seconds=3) == ("no_text",)
    assert flags_of("", seconds=0.4) == ()  # a click


def test_a_low_log_probability() -> None:
    assert flags_of(REAL, avg_logprob=-1.2) == ("low_confidence",)
    assert flags_of(REAL, avg_logprob=None) == ()


def test_cut_off_at_the_token_limit() -> None:
    assert flags_of(REAL, complete=False) == ("cut_off",)
