"""Which segments are flagged, and which are not."""

import random
import string

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


RANDOM = "".join(random.Random(0).choices(string.ascii_lowercase + " ", k=1000))  # deflates by about 1.5
REPEATED = 9 * "we will send the parts to you on monday and the invoice follows "


@pytest.mark.parametrize(
    ("flag", "text", "seconds", "avg_logprob", "complete", "raised"),
    [
        ("cut_off", REAL, 12.0, -0.1, True, False),
        ("cut_off", REAL, 12.0, -0.1, False, True),
        ("repetition", "a" * 39, 12.0, -0.1, True, False),  # too short to tell, at a ratio of 3.25
        ("repetition", "a" * 40, 12.0, -0.1, True, True),
        ("repetition", REPEATED[:155], 12.0, -0.1, True, False),  # ratio 2.35 (not nearer to 2.4: zlib builds differ)
        ("repetition", REPEATED[:162], 12.0, -0.1, True, True),  # ratio 2.45
        ("too_fast", RANDOM[:360], 12.0, -0.1, True, False),  # 30 characters a second
        ("too_fast", RANDOM[:361], 12.0, -0.1, True, True),
        ("too_fast", RANDOM[:30], 0.2, -0.1, True, False),  # a clip below a second counts as one
        ("too_fast", RANDOM[:31], 0.2, -0.1, True, True),
        ("no_text", "", 0.99, -0.1, True, False),
        ("no_text", "", 1.0, -0.1, True, True),
        ("no_text", "yes", 1.0, -0.1, True, False),
        ("low_confidence", REAL, 12.0, -1.0, True, False),
        ("low_confidence", REAL, 12.0, -1.001, True, True),
        ("low_confidence", REAL, 12.0, None, True, False),
        ("low_confidence", "", 0.4, -3.0, True, False),  # a click
    ],
)
def test_each_flag_at_its_threshold(
    flag: str, text: str, seconds: float, avg_logprob: float | None, complete: bool, raised: bool
) -> None:
    assert flags_of(text, seconds, avg_logprob, complete) == ((flag,) if raised else ())
