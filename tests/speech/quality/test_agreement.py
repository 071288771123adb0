"""Which words of a text the CTC hypothesis supports, and which of its words the text lacks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.quality.agreement import agreement, agreement_flags

CALL = "hello my name is frank wilson i was charged three thousand nine hundred and eight dollars twice"


@pytest.mark.parametrize(
    ("text", "hypothesis"),
    [
        ("my account number is seven two three", "my account number is seven two three"),
        # Spelling and spaces are CTC's own.
        ("i live at fifty eight station road in seattle", "i live at fiftye ight station rod in seattl"),
        ("is your address still eighty one river road", "is your addresstilleigty one rierro"),
        ("please ask for doctor nindooddah", "please ask for doctor nanduda"),
        # Case and punctuation are the model's.
        ("Is that so? Yes - it's £5, I'd say.", "is that so yes its five pounds i d say"),
        ("Straße nach Köln, bitte!", "strase nach kölnbite"),
        # Written numbers stand for spoken ones, in any language.
        ("we will refund 23 euros and 5 cents", "we will refund twenty three euros and five cents"),
        (
            "reach me at 555 1234 in the morning",
            "reach me at five five five one two three four in te morning",
        ),
        ("the total is $1,204.50 today", "the total is one thousand two hundred and four dollars fifty today"),
        ("das war 1977 in berlin", "das war neunzehnhundertsiebenundsiebzig in berlin"),
        ("il habite au 97 rue de lyon", "il abite au quatre vingt dix sept rue de lion"),
        ("o código é 0800 123", "o codigo e zero oitocentos cento e vinte e três"),
        ("the code is 4711", "the code is 4711"),
        # Scripts without spaces.
        ("今日はとても良い天気ですね。", "今日はとても良い天気ですね"),
        ("東京駅まで、お願いします", "東京駅まてお願いします"),
        # A word of one misheard is no passage.
        ("please send it to martin dot hamilton", "please send it to car dot hammilton"),
        ("ok", "ok"),
        ("yes", "yas"),
        ("", ""),
        ("", "h"),
    ],
)
def test_texts_that_agree(text: str, hypothesis: str) -> None:
    compared = agreement(text, hypothesis)
    assert (compared.not_heard, compared.left_out) == ((), ())
    assert agreement_flags(compared) == ()


@pytest.mark.parametrize(
    ("text", "hypothesis", "not_heard"),
    [
        # Added at the end, in the middle, at the start.
        (f"{CALL} thanks for watching everyone", CALL, ("thanks for watching everyone",)),
        (
            "i was charged sixty thank you for watching pounds",
            "charged sixty pounds",
            ("thank you for watching",),
        ),
        ("Subtitles by the community. Where is my order?", "where is my oder", ("Subtitles by the community.",)),
        # A repetition loop of what was said once.
        ("thank you " * 5, "thank you", ("thank you thank you thank you thank you",)),
        ("good bye", "", ("good bye",)),
        ("you", "", ("you",)),
        ("1234 5678 90", "", ("1234 5678 90",)),
        # Numbers that nobody said.
        ("i have cats 12 13 14 15 and dogs", "i have cats and dogs", ("12 13 14 15",)),
        ("明日ご視聴ありがとうございました", "明日", ("ご視聴ありがとうございました",)),
    ],
)
def test_words_that_were_not_heard(text: str, hypothesis: str, not_heard: tuple[str, ...]) -> None:
    compared = agreement(text, hypothesis)
    assert compared.not_heard == not_heard
    assert agreement_flags(compared) == ("not_heard",)


@pytest.mark.parametrize(
    ("text", "hypothesis", "left_out"),
    [
        ("hello my name is frank wilson", CALL, (CALL.removeprefix("hello my name is frank wilson "),)),
        ("", "is the light buarret", ("is the light buarret",)),
        ("今日は", "今日は天気がとても良い", ("天気がとても良い",)),
        # A number stands for its own words only.
        ("i have 3", "i have three and then we went to the station", ("we went to the station",)),
    ],
)
def test_words_that_were_left_out(text: str, hypothesis: str, left_out: tuple[str, ...]) -> None:
    compared = agreement(text, hypothesis)
    assert compared.left_out == left_out
    assert agreement_flags(compared) == ("left_out",)


def test_an_invention_in_place_of_what_was_said_is_both() -> None:
    """As the demo model has it: the text goes on fluently, elsewhere."""
    compared = agreement(
        "i have been a customer for thirteen minutes good afternoon you are speaking with paul",
        "i have been a customer forthirteen manet i want to travel from bellin to g lascow",
    )
    assert agreement_flags(compared) == ("not_heard", "left_out")
    assert compared.not_heard[-1].endswith("good afternoon you are speaking with paul")
    assert 0.3 < compared.not_heard_share < 0.7


def test_shares_are_of_words() -> None:
    compared = agreement("one two three four", "one two three five six")
    assert compared.not_heard_share == pytest.approx(0.25)
    assert compared.left_out_share == pytest.approx(0.4)
    assert agreement("", "").not_heard_share == 0


TEXTS = st.text(alphabet="ab cdé 12ß.今日は", max_size=60) | st.text(max_size=30)


@given(TEXTS)
def test_a_text_agrees_with_itself(text: str) -> None:
    compared = agreement(text, text)
    assert (compared.not_heard_share, compared.left_out_share) == (0, 0)
    assert agreement_flags(compared) == ()


@given(TEXTS, TEXTS)
def test_passages_are_parts_of_their_text(text: str, hypothesis: str) -> None:
    compared = agreement(text, hypothesis)
    assert 0 <= compared.not_heard_share <= 1
    assert 0 <= compared.left_out_share <= 1
    assert all(passage in text for passage in compared.not_heard)
    assert all(passage in hypothesis for passage in compared.left_out)
