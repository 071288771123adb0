"""No speech is lost, no region is longer than a clip, and the size of the blocks makes no difference."""

import itertools

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE
from speech.audio.segmenting import (
    EARLY_S,
    MIN_SILENCE_S,
    ONSET_PROBABILITY,
    PADDING_S,
    Segmenter,
    SpeechRegion,
    segment_channel,
)
from speech.audio.silero import WINDOW
from speech.audio.vad import VadWindows

CLIP_S = 10.0


def windows(*runs: tuple[float, float, float]) -> VadWindows:
    """Runs of (seconds, probability, level in dB)."""
    parts = [(np.full(count(seconds), p), np.full(count(seconds), db)) for seconds, p, db in runs]
    return VadWindows(*(np.concatenate(arrays).astype(np.float32) for arrays in zip(*parts, strict=True)))


def count(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / WINDOW)


def speech(seconds: float) -> tuple[float, float, float]:
    return seconds, 0.99, -20.0


def pause(seconds: float) -> tuple[float, float, float]:
    return seconds, 0.01, -60.0


def cut(found: VadWindows, clip_s: float = CLIP_S) -> list[SpeechRegion]:
    return segment_channel(found, len(found.probabilities) * WINDOW, clip_s)


def seconds(found: list[SpeechRegion]) -> list[tuple[float, float]]:
    return [(part.start / SAMPLE_RATE, part.end / SAMPLE_RATE) for part in found]


def near(*bounds: tuple[float, float]) -> list[object]:
    return [pytest.approx(pair, abs=0.035) for pair in bounds]  # a window to either side


def test_turns_are_separate_and_padded() -> None:
    found = cut(windows(pause(2), speech(3), pause(1), speech(2), pause(2)))
    assert seconds(found) == near((2 - PADDING_S, 5 + PADDING_S), (6 - PADDING_S, 8 + PADDING_S))
    assert [part.speech / SAMPLE_RATE for part in found] == pytest.approx([3, 2], abs=0.035)


@pytest.mark.parametrize("late", [(0.4, 0.2, -45.0), (0.4, 0.02, -40.0)], ids=["some probability", "loud"])
def test_speech_before_a_late_onset_is_kept(late: tuple[float, float, float]) -> None:
    [first, second] = cut(windows(pause(2), late, speech(3), pause(1), late, speech(2), pause(2)))
    assert first.start / SAMPLE_RATE == pytest.approx(2 - PADDING_S, abs=0.035)
    assert second.start / SAMPLE_RATE == pytest.approx(6.4 - PADDING_S, abs=0.07)


def test_noise_before_an_onset_is_kept_for_a_moment_only() -> None:
    [found] = cut(windows(pause(2), (3, 0.2, -45.0), speech(3), pause(2)))
    assert found.start / SAMPLE_RATE == pytest.approx(5 - EARLY_S - PADDING_S, abs=0.035)


def test_a_click_before_an_onset_is_no_region_but_may_be_its_start() -> None:
    found = cut(windows(pause(2), (0.064, 0.9, -30.0), pause(MIN_SILENCE_S + 0.1), speech(2), pause(2)))
    assert seconds(found) == near((2.064 + MIN_SILENCE_S + 0.1 - PADDING_S, 4.064 + MIN_SILENCE_S + 0.1 + PADDING_S))


def test_a_short_pause_does_not_end_a_region() -> None:
    found = cut(windows(pause(1), speech(2), pause(MIN_SILENCE_S - 0.1), speech(2), pause(1)))
    assert seconds(found) == near((1 - PADDING_S, 5.6 + PADDING_S))


def test_a_region_lasts_until_the_offset_threshold() -> None:
    found = cut(windows(pause(1), speech(1), (1, 0.4, -40), pause(1)))
    assert seconds(found) == near((1 - PADDING_S, 3 + PADDING_S))


def test_a_click_is_dropped_and_a_short_word_is_kept() -> None:
    assert cut(windows(pause(1), speech(0.064), pause(1))) == []
    assert len(cut(windows(pause(1), speech(0.128), pause(1)))) == 1


def test_padding_is_limited_by_the_file() -> None:
    assert seconds(cut(windows(pause(0.1), speech(1), pause(0.1)))) == near((0, 1.2))
    found = segment_channel(windows(speech(1)), samples=15_000, clip_s=CLIP_S)  # the last window was padded
    assert found[-1].end == 15_000


def test_a_long_region_is_cut_in_a_pause_rather_than_in_quiet_speech() -> None:
    breath, whisper = (0.35, 0.05, -35.0), (0.1, 0.95, -50.0)  # in noise: the breath is louder than the whisper
    found = cut(windows(speech(7), breath, speech(1), whisper, speech(5), pause(1)))
    assert seconds(found) == near((0, 7.175), (7.175, 13.45 + PADDING_S))


def test_a_long_region_without_a_pause_is_cut_where_it_is_quietest() -> None:
    found = cut(windows(speech(6), (0.064, 0.99, -45.0), speech(3), (0.064, 0.99, -30.0), speech(5)))
    assert seconds(found)[0] == near((0, 6.03))[0]


def test_of_equal_pauses_the_latest_is_cut() -> None:
    found = cut(windows(speech(6), pause(0.4), speech(2), pause(0.4), speech(5)))
    assert seconds(found)[0] == near((0, 8.6))[0]


def test_uniform_speech_is_cut_without_loss() -> None:
    found = cut(windows(speech(95)))
    assert found[0].start == 0
    assert found[-1].end == count(95) * WINDOW
    assert all(a.end == b.start for a, b in itertools.pairwise(found))
    assert sum(part.speech for part in found) == count(95) * WINDOW


def test_a_short_remainder_after_a_cut_is_kept() -> None:
    window = WINDOW / SAMPLE_RATE
    limit_s = CLIP_S - PADDING_S
    found = cut(windows(speech(limit_s - 6 * window), (window, 0.99, -60.0), speech(6 * window), pause(1)))
    assert len(found) == 2
    assert found[0].end == found[1].start
    assert found[1].speech <= 7 * WINDOW


@pytest.mark.parametrize("clip_s", [4.0, 30.0])
def test_a_channel_that_ends_after_a_cut_leaves_no_clip_too_short_for_an_encoder(clip_s: float) -> None:
    limit = int(clip_s * SAMPLE_RATE)
    for samples in range(limit - 10 * WINDOW, limit + 3 * WINDOW, 100):
        found = segment_channel(windows(speech(-(-samples // WINDOW) * WINDOW / SAMPLE_RATE)), samples, clip_s)
        assert found[-1].end == samples
        assert min(part.end - part.start for part in found) >= 0.1 * SAMPLE_RATE


@pytest.mark.parametrize("seed", range(40))
def test_random_windows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.choice([0.01, 0.2, 0.4, 0.6, 0.99], size=80, p=[0.25, 0.1, 0.15, 0.1, 0.4])
    probabilities = np.repeat(levels, rng.integers(1, 40, 80)).astype(np.float32)
    probabilities = np.clip(probabilities + rng.normal(0, 0.05, len(probabilities)), 0, 1).astype(np.float32)
    stream = VadWindows(probabilities, rng.uniform(-70, -10, len(probabilities)).astype(np.float32))
    samples = len(probabilities) * WINDOW - int(rng.integers(0, WINDOW))
    clip_s = float(rng.choice([4.0, 7.3, 30.0]))
    whole = segment_channel(stream, samples, clip_s)

    assert all(0 <= part.start < part.end <= samples for part in whole)
    assert all(part.end - part.start <= clip_s * SAMPLE_RATE for part in whole)
    assert all(a.end <= b.start for a, b in itertools.pairwise(whole))
    assert all(0 < part.speech <= part.end - part.start for part in whole)

    covered = np.zeros(len(probabilities) + 1, bool)
    for part in whole:
        covered[part.start // WINDOW : -(-part.end // WINDOW)] = True
    likely = np.append(probabilities >= ONSET_PROBABILITY, False)
    for at in np.flatnonzero(likely[:-2] & likely[1:-1] & likely[2:]):
        assert covered[at : at + 3].all(), "three windows above the onset threshold were dropped"

    segmenter, streamed, keep_from, at = Segmenter(clip_s), [], 0, 0
    while at < len(probabilities):
        size = int(rng.choice([1, 2, 7, 50, 500]))
        found = segmenter.push(VadWindows(*(array[at : at + size] for array in stream)))
        assert all(part.start >= keep_from for part in found), "a region began in discarded audio"
        keep_from, at = segmenter.keep_from, min(at + size, len(probabilities))
        streamed += found
        assert (at * WINDOW - keep_from) / SAMPLE_RATE < clip_s + 2, "more than a clip is kept"
    assert streamed + segmenter.finish(samples) == whole


def test_a_clip_limit_below_the_minimum_is_refused() -> None:
    with pytest.raises(ValueError, match="leave no room"):
        Segmenter(1.0)
