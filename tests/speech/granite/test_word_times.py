"""Forced alignment on made posteriors: what was heard says when each word was said."""

import pytest
import torch

from speech.granite.word_times import FRAME_S, LABEL_LAG_S, WordTime, align_words

pytestmark = pytest.mark.engine

LABELS = 348
PEAK = 0.99


def posteriors(heard: str) -> torch.Tensor:
    """Posteriors in which each frame's label is as written, ``_`` for blank."""
    probs = torch.full((len(heard), LABELS), (1 - PEAK) / (LABELS - 1))
    for frame, character in enumerate(heard):
        probs[frame, 0 if character == "_" else ord(character)] = PEAK
    return probs.log()


def frames(time: WordTime) -> tuple[int, int]:
    """The first and the last frame."""
    return round((time.start_s + LABEL_LAG_S) / FRAME_S), round(time.end_s / FRAME_S) - 1


def test_words_are_where_their_characters_were_heard() -> None:
    heard = "____hh_i____ __th_e_r_e______"
    hi, there = align_words(["hi", "there"], posteriors(heard))
    assert frames(hi) == (4, 7)
    assert frames(there) == (heard.index("t"), heard.rindex("e"))
    assert hi.score == pytest.approx(PEAK, abs=1e-3)


@pytest.mark.parametrize("written", ["There,", "there", "THERE.", "“there”"])
def test_case_and_punctuation_make_no_difference(written: str) -> None:
    heard = "__hi___ _th_e_r_e__"
    _, time = align_words(["Hi!", written], posteriors(heard))
    assert frames(time) == (heard.index("t"), heard.rindex("e"))
    assert time.score == pytest.approx(PEAK, abs=1e-3)


def test_a_word_spelled_otherwise_is_still_found_and_scores_less() -> None:
    heard = "__go_o_d___ __a_f_t_e_r_n_o_n___ __sir__"
    good, afternoon, sir = align_words(["good", "afternoon", "sir"], posteriors(heard))
    assert frames(good)[0] == heard.index("g")
    assert frames(afternoon)[0] == heard.index("a")
    assert abs(frames(afternoon)[1] - heard.rindex("n")) <= 2
    assert frames(sir)[0] == heard.index("s")
    assert good.score is not None
    assert afternoon.score is not None
    assert afternoon.score < good.score


def test_written_digits_take_what_is_heard_between_their_neighbours() -> None:
    heard = "___at___ __t_w_e_n_t_y__ _t_h_r_ee___ ___e_u_r_o_s___"
    at, number, euros = align_words(["at", "23", "euros"], posteriors(heard))
    assert frames(at) == (3, 4)
    assert frames(number) == (heard.index("t", 5), heard.index("ee") + 1)
    assert number.score is None
    assert frames(euros)[0] == heard.index("e_u")


def test_words_without_labels_divide_their_span_by_characters() -> None:
    heard = "__________a_b_c_d_e_f_g_h__________"
    times = align_words(["こん", "に", "ち", "は", "。"], posteriors(heard))
    assert frames(times[0])[0] == 10
    assert frames(times[-1])[1] == heard.index("h")
    assert [a.end_s for a in times[:-1]] == pytest.approx([b.start_s for b in times[1:]])
    lengths = [time.end_s - time.start_s for time in times]
    assert lengths[0] == pytest.approx(2 * lengths[1])
    assert all(time.score is None for time in times)


def test_an_invented_word_gets_a_place_and_a_low_score() -> None:
    times = align_words(["hi", "invented", "there"], posteriors("__hi___ __________________t_h_e_r_e____"))
    assert frames(times[0]) == (2, 3)
    assert times[1].score is not None
    assert times[1].score < 0.1
    assert times[0].end_s <= times[1].start_s <= times[1].end_s <= times[2].start_s


def test_more_characters_than_frames_divide_the_clip() -> None:
    times = align_words(["the"] * 20, posteriors("_the______"))
    assert times[0].start_s == 0
    assert times[-1].end_s == pytest.approx(10 * FRAME_S)
    assert all(time.score is None for time in times)


def test_punctuation_alone_has_no_duration_and_no_words_no_times() -> None:
    hi, dash, there = align_words(["hi", "—", "there"], posteriors("__hi__ __t_h_e_r_e"))
    assert dash.start_s == dash.end_s == hi.end_s
    assert there.score is not None
    assert align_words(["—", "…"], posteriors("____")) == [WordTime(0.0, 0.0), WordTime(0.0, 0.0)]
    assert align_words([], posteriors("__a__")) == []


def test_repeated_letters_and_repeated_words_are_kept_apart() -> None:
    heard = "__be_e___ _be_e__"
    first, second = align_words(["bee", "bee"], posteriors(heard))
    assert frames(first) == (2, 5)
    assert frames(second) == (heard.rindex("b"), heard.rindex("e"))
