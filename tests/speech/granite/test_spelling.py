"""Words of drafts, corrected by words that were output before."""

from speech.granite.spelling import MAX_WORDS, SpellingCorrector


def learned(text: str) -> SpellingCorrector:
    corrector = SpellingCorrector()
    corrector.learn(text.split())
    return corrector


def test_an_unknown_word_is_replaced_by_the_most_similar_known_one() -> None:
    corrector = learned("good afternoon please send it to manchester")
    assert corrector.correct("gud afternon pleae sent it to manchister") == "gud afternoon please send it to manchester"


def test_known_short_and_dissimilar_words_are_not_changed() -> None:
    corrector = learned("seven seventeen ate")
    assert corrector.correct("seven  at zanzibar sev") == "seven at zanzibar sev"
    assert SpellingCorrector().correct("anything at all") == "anything at all"


def test_beyond_the_limit_the_least_recently_used_words_are_dropped() -> None:
    corrector = learned("afternoon manchester")
    corrector.learn(f"word{number}" for number in range(MAX_WORDS - 2))
    corrector.learn(["afternoon", "another"])
    assert corrector.correct("afternon manchister") == "afternoon manchister"
