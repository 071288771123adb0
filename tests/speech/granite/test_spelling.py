"""Words of drafts, mended by words that were written before."""

from speech.granite.spelling import MOST_WORDS, SpellingCorrector


def learned(text: str) -> SpellingCorrector:
    corrector = SpellingCorrector()
    corrector.learn(text.split())
    return corrector


def test_an_unknown_word_gives_way_to_the_known_one_most_like_it() -> None:
    corrector = learned("good afternoon please send it to manchester")
    assert (
        corrector.corrected("gud afternon pleae sent it to manchister") == "gud afternoon please send it to manchester"
    )


def test_known_words_short_words_and_words_like_no_other_stay() -> None:
    corrector = learned("seven seventeen ate")
    assert corrector.corrected("seven  at zanzibar sev") == "seven at zanzibar sev"
    assert SpellingCorrector().corrected("anything at all") == "anything at all"


def test_of_too_many_words_those_are_forgotten_that_were_not_used_for_longest() -> None:
    corrector = learned("afternoon manchester")
    corrector.learn(f"word{number}" for number in range(MOST_WORDS - 2))
    corrector.learn(["afternoon", "another"])
    assert corrector.corrected("afternon manchister") == "afternoon manchister"
