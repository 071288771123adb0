"""Words of drafts, mended by words that were written before."""

from speech.granite.lexicon import MOST_WORDS, Lexicon


def learned(text: str) -> Lexicon:
    lexicon = Lexicon()
    lexicon.learn(text.split())
    return lexicon


def test_an_unknown_word_gives_way_to_the_known_one_most_like_it() -> None:
    lexicon = learned("good afternoon please send it to manchester")
    assert lexicon.mended("gud afternon pleae sent it to manchister") == "gud afternoon please send it to manchester"


def test_known_words_short_words_and_words_like_no_other_stay() -> None:
    lexicon = learned("seven seventeen ate")
    assert lexicon.mended("seven  at zanzibar sev") == "seven at zanzibar sev"
    assert Lexicon().mended("anything at all") == "anything at all"


def test_of_too_many_words_those_are_forgotten_that_were_not_used_for_longest() -> None:
    lexicon = learned("afternoon manchester")
    lexicon.learn(f"word{number}" for number in range(MOST_WORDS - 2))
    lexicon.learn(["afternoon", "another"])
    assert lexicon.mended("afternon manchister") == "afternoon manchister"
