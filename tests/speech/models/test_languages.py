"""The language of a recording from the probabilities of its clips."""

import math

import pytest

from speech.models.families import WHISPER
from speech.models.languages import language_token_ids, most_probable, normalised


def logs(**probabilities: float) -> dict[str, float]:
    return {language: math.log(probability) for language, probability in probabilities.items()}


@pytest.mark.parametrize(
    ("clips", "language", "probability"),
    [
        ([logs(de=0.9, en=0.1)], "de", 0.9),
        ([logs(de=0.4, en=0.6), logs(de=0.4, en=0.6), logs(de=0.9, en=0.1)], "de", 0.8),  # 0.144 of 0.18
        ([logs(de=0.5, en=0.5)] * 2, "de", 0.5),
        ([logs(de=0.9, en=0.1)] * 1000, "de", 1.0),  # the product of the probabilities would be 0
    ],
)
def test_clips_are_taken_together(clips: list[dict[str, float]], language: str, probability: float) -> None:
    assert most_probable(clips) == (language, pytest.approx(probability))


def test_probabilities_are_of_the_languages_alone() -> None:
    assert normalised({"de": 1001.0, "en": 1000.0}) == pytest.approx(
        {"de": -math.log(1 + math.exp(-1)), "en": -math.log(1 + math.e)}
    )


class Vocabulary:
    def get_vocab(self) -> dict[str, int]:
        return {"<|en|>": 7, "<|de|>": 9, "<|transcribe|>": 11, "de": 2}


def test_a_checkpoint_without_the_newest_languages_detects_the_others() -> None:
    assert language_token_ids(Vocabulary(), WHISPER) == {"de": 9, "en": 7}
