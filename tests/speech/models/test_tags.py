"""Parsing of the speaker and time tags in the output of Granite 4.1 plus."""

from speech.models.tags import speaker_turns, timed_words, without_time_tags
from speech.transcript import Word


def test_speaker_turns() -> None:
    assert speaker_turns("[Speaker 1]: hello there [Speaker 2]: hi [Speaker 1]: bye") == [
        ("Speaker 1", "hello there"),
        ("Speaker 2", "hi"),
        ("Speaker 1", "bye"),
    ]


def test_words_before_the_first_tag_and_empty_turns() -> None:
    assert speaker_turns("so [Speaker 2]: [Speaker 1]: yes") == [(None, "so"), ("Speaker 1", "yes")]
    assert speaker_turns("no tags at all") == [(None, "no tags at all")]
    assert speaker_turns("") == []


def test_words_and_their_times() -> None:
    assert timed_words("hello [T:45] _ [T:60] world [T:82]", start_s=100) == [
        Word("hello", 100.0, 100.45),
        Word("world", 100.6, 100.82),
    ]


def test_times_wrap_around_every_ten_seconds() -> None:
    words = timed_words("a [T:950] b [T:20] _ [T:990] c [T:5] d [T:5]")
    assert [(word.start_s, word.end_s) for word in words] == [(0.0, 9.5), (9.5, 10.2), (19.9, 20.05), (20.05, 20.05)]


def test_tags_without_spaces() -> None:
    assert [word.text for word in timed_words("hello[T:45]world,[T:82]")] == ["hello", "world,"]


def test_time_tags_are_removed_and_no_word() -> None:
    assert without_time_tags("hello [T:45] _ [T:60] world [T:82]") == "hello world"
    assert without_time_tags("hello[T:45] world") == "hello world"  # cut off at the token limit
    assert without_time_tags("no tags at all") == "no tags at all"  # the instruction was not followed
