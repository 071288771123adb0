"""Parsing of the speaker tags in the output of Granite 4.1 plus."""

from speech.models.tags import mask_speaker_tags, speaker_turns


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


def test_masked_tags_leave_every_word_in_its_place() -> None:
    text = "so [Speaker 2]: hi [Speaker 10]: yes"
    masked = mask_speaker_tags(text)
    assert masked.split() == ["so", "hi", "yes"]
    assert all(masked.index(word) == text.index(word) for word in masked.split())
