"""Subtitle cues: their limits on any transcript, and where they break."""

import random
from itertools import pairwise

import pytest

from speech.recording import Options, Recording
from speech.subtitles import LINE_WIDTH, MAX_S, MIN_S, Cue, _width, cues
from speech.transcript import Segment, Transcript, Word


def spoken(text: str, *, start_s: float = 0.0, word_s: float = 0.35, pauses: dict[int, float] | None = None) -> Segment:
    """A segment whose words take the same time; ``pauses``: seconds after the word of that number."""
    words, at_s = [], start_s
    for number, word in enumerate(text.split()):
        words.append(Word(word, at_s, at_s + word_s))
        at_s += word_s + (pauses or {}).get(number, 0.0)
    return Segment(0, None, start_s, at_s, text, words=tuple(words))


def cues_of(*segments: Segment, language: str = "en", speaker_in_text: bool = True) -> list[Cue]:
    recording = Recording(id="call", audio="call.wav", options=Options(language=language))
    text = " ".join(segment.text for segment in segments)
    return cues(Transcript(recording, "model", text, segments), speaker_in_text=speaker_in_text)


def lines_of(*segments: Segment, language: str = "en") -> list[tuple[str, ...]]:
    return [cue.lines for cue in cues_of(*segments, language=language)]


@pytest.mark.parametrize("with_times", [True, False])
@pytest.mark.parametrize("speaker", [None, "agent", "a customer with a very long name"])
def test_cues_are_short_enough_to_read_and_lose_no_word(with_times: bool, speaker: str | None) -> None:
    rng = random.Random(0)
    for _ in range(50):
        text = " ".join(
            "x" * rng.randint(1, 12) + rng.choice(["", "", "", ",", "."]) for _ in range(rng.randint(1, 90))
        )
        pauses = {rng.randrange(90): rng.uniform(0.1, 2.0) for _ in range(5)}
        whole = spoken(text, start_s=rng.uniform(0, 100), word_s=rng.uniform(0.1, 0.5), pauses=pauses)
        segment = Segment(0, speaker, whole.start_s, whole.end_s, text, words=whole.words if with_times else ())
        found = cues_of(segment, speaker_in_text=False)
        assert " ".join(line for cue in found for line in cue.lines) == text
        for cue in cues_of(segment):
            assert len(cue.lines) <= 2
            assert all(_width(line) <= LINE_WIDTH for line in cue.lines)
            assert cue.start_s < cue.end_s <= cue.start_s + MAX_S
        for cue, after in pairwise(found):
            assert cue.end_s <= after.start_s + 1e-9


def test_cues_break_at_pauses_and_at_the_end_of_sentences() -> None:
    text = "thank you for calling my name is anna how can i help you today with your order"
    assert lines_of(spoken(text, pauses={3: 0.8, 6: 0.6})) == [
        ("thank you for calling",),
        ("my name is",),
        ("anna how can i help you", "today with your order"),
    ]
    punctuated = "Thank you for calling us today. How can I help you, and what is your order number?"
    assert lines_of(spoken(punctuated)) == [
        ("Thank you for calling us today.",),
        ("How can I help you,", "and what is your order number?"),
    ]


def test_a_line_holds_what_fits_and_two_are_of_like_width() -> None:
    assert lines_of(spoken("a short line")) == [("a short line",)]
    [lines] = lines_of(spoken("one two three four five six seven eight nine", word_s=0.3))
    assert lines == ("one two three four five", "six seven eight nine")


def test_a_short_cue_stays_for_a_second_or_until_the_next() -> None:
    [alone] = cues_of(spoken("yes", start_s=5.0, word_s=0.2))
    assert (alone.start_s, alone.end_s) == (5.0, 5.0 + MIN_S)
    first, second = cues_of(spoken("yes", start_s=5.0, word_s=0.2), spoken("no", start_s=5.5, word_s=0.2))
    assert first.end_s == second.start_s == 5.5


def test_speakers_are_named_in_the_text_or_beside_it() -> None:
    segment = Segment(0, "agent", 0.0, 1.0, "good morning")
    assert cues_of(segment)[0].lines == ("agent: good morning",)
    assert cues_of(segment, speaker_in_text=False)[0] == Cue(0.0, 1.0, 0, "agent", ("good morning",))


def test_japanese_is_divided_between_characters_of_two_columns() -> None:
    found = cues_of(Segment(0, None, 0.0, 20.0, "お電話ありがとうございます。" * 8), language="ja")
    assert "".join(line for cue in found for line in cue.lines) == "お電話ありがとうございます。" * 8
    assert all(len(line) <= LINE_WIDTH // 2 for cue in found for line in cue.lines)
    assert all(cue.lines[-1].endswith("。") for cue in found)


def test_cues_of_both_channels_are_in_the_order_of_time() -> None:
    first = Segment(0, "agent", 0.0, 9.0, "one two three four five six seven eight nine ten eleven twelve thirteen")
    second = Segment(1, "customer", 1.0, 2.0, "yes")
    starts = [cue.start_s for cue in cues_of(first, second)]
    assert starts == sorted(starts)


def test_a_word_longer_than_a_line_is_split() -> None:
    assert all(_width(line) <= LINE_WIDTH for cue in cues_of(Segment(0, None, 0, 9, "x" * 200)) for line in cue.lines)
