"""The Listener returns each turn of a call with its channel, times and audio, wherever the file comes from."""

import io
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speech.audio.clips import Clip
from speech.errors import AudioError
from speech.listener import PART_S, Listener, ListenResult, join_parts
from speech.recording import Channels, Options, Recording
from testing.synthetic_audio import RATE, Turn, at_rate, call, peak_correlation, sentence, silence, sndfile

CALL, TURNS = call(exchanges=2)
CALL_S = len(CALL) / RATE


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener(clip_s=30.0)


def listen(
    listener: Listener, path: Path, samples: np.ndarray, channels: Channels = "auto", **range_s: float
) -> ListenResult:
    path.write_bytes(sndfile(samples, "WAV", "ULAW"))
    return listener.listen(Recording(id="1", audio=str(path), options=Options(channels=channels), **range_s))


def assert_turns(clips: list[Clip], turns: tuple[Turn, ...]) -> None:
    """Each turn is one clip, which begins and ends up to a padding before and after it."""
    assert [clip.channel for clip in clips] == [turn.channel for turn in turns]
    for clip, turn in zip(clips, turns, strict=True):
        assert turn.start_s - 0.5 <= clip.start_s <= turn.start_s
        assert turn.end_s <= clip.end_s <= turn.end_s + 0.8
        assert len(clip.samples) == round((clip.end_s - clip.start_s) * 16_000)


def test_a_stereo_call_becomes_its_turns_in_time_order(listener: Listener, tmp_path: Path) -> None:
    listened = listen(listener, tmp_path / "call.wav", CALL)
    assert_turns(listened.clips, TURNS)
    assert (listened.channels, listened.duration_s) == (2, pytest.approx(CALL_S))
    spoken_s = sum(turn.end_s - turn.start_s for turn in TURNS)
    assert listened.speech_s == pytest.approx(spoken_s, rel=0.1)


def test_a_clip_has_the_audio_of_its_turn(listener: Listener, tmp_path: Path) -> None:
    listened = listen(listener, tmp_path / "call.wav", CALL)
    whole = at_rate(CALL, 16_000)
    for clip in listened.clips:
        assert clip.samples.dtype == np.int16
        start = round(clip.start_s * 16_000)
        said = whole[start : start + len(clip.samples), clip.channel]
        assert peak_correlation(clip.samples / np.float32(32768), said, max_lag_s=0) > 0.999
        assert np.abs(clip.samples).max() / 32768 == pytest.approx(np.abs(said).max(), rel=0.1)


def test_overlapping_speech_is_kept_on_both_channels(listener: Listener, tmp_path: Path) -> None:
    agent, customer = sentence("agent"), sentence("customer")
    size = max(len(agent), len(customer))
    both = np.stack([np.pad(voice, (RATE, size - len(voice) + RATE)) for voice in (agent, customer)], axis=1)
    listened = listen(listener, tmp_path / "call.wav", both)
    assert [clip.channel for clip in listened.clips] == [0, 1]
    assert listened.speech_s > 0.9 * (len(agent) + len(customer)) / RATE


def test_dual_mono_is_one_channel(listener: Listener, tmp_path: Path) -> None:
    mono = CALL.sum(axis=1)
    listened = listen(listener, tmp_path / "call.wav", np.stack([mono, mono], axis=1))
    assert listened.channels == 1
    assert_turns(listened.clips, tuple(Turn(0, turn.start_s, turn.end_s) for turn in TURNS))


def test_a_mixture_on_a_third_channel_is_left_out(listener: Listener, tmp_path: Path) -> None:
    for order in ((0, 1, 2), (2, 0, 1)):
        channels = np.concatenate([CALL, 0.5 * CALL.sum(axis=1, keepdims=True)], axis=1)[:, order]
        listened = listen(listener, tmp_path / "call.wav", channels)
        assert listened.channels == 2
        assert_turns(listened.clips, tuple(Turn(order.index(t.channel), t.start_s, t.end_s) for t in TURNS))


@pytest.mark.parametrize("channels", ["auto", "mix"])
def test_an_inverted_copy_is_transcribed_once(channels: Channels, listener: Listener, tmp_path: Path) -> None:
    mono = CALL.sum(axis=1)
    listened = listen(listener, tmp_path / "call.wav", np.stack([mono, -mono], axis=1), channels)
    assert_turns(listened.clips, tuple(Turn(0, turn.start_s, turn.end_s) for turn in TURNS))


def test_speech_on_the_second_channel_of_a_short_file_is_a_clip(listener: Listener, tmp_path: Path) -> None:
    words = sentence("customer")[RATE // 2 :][: round(0.9 * RATE)]
    listened = listen(listener, tmp_path / "call.wav", np.stack([words * 0, words], axis=1))
    assert [clip.channel for clip in listened.clips] == [1]


def flac24(samples: np.ndarray) -> io.BytesIO:
    return io.BytesIO(sndfile(samples, "FLAC", "PCM_24"))


@pytest.mark.parametrize("level_db", [-35, -45, -55])
def test_a_quiet_call_is_amplified_and_flagged(level_db: float, listener: Listener) -> None:
    recording = Recording(id="1", audio="call.flac")
    normal = listener.listen(recording, flac24(CALL))
    quiet = listener.listen(recording, flac24(CALL * 10 ** (level_db / 20) + 0.05))  # with DC
    assert (normal.flags, quiet.flags) == ((), ("quiet",))
    assert [clip.channel for clip in quiet.clips] == [turn.channel for turn in TURNS]
    assert [clip.start_s for clip in quiet.clips] == pytest.approx([turn.start_s for turn in TURNS], abs=0.4)
    assert quiet.speech_s == pytest.approx(normal.speech_s, rel=0.1)
    loudest = max(float(np.std(clip.samples)) for clip in quiet.clips)
    assert 20 * np.log10(loudest / 32768) == pytest.approx(-24, abs=3)


def test_quiet_noise_is_not_speech(listener: Listener) -> None:
    noise = 0.002 * np.random.default_rng(0).standard_normal((10 * RATE, 2))
    listened = listener.listen(Recording(id="1", audio="noise.flac"), flac24(noise.astype(np.float32)))
    assert (listened.clips, listened.flags) == ([], ())


@pytest.mark.parametrize(("channels", "count", "turns"), [("mix", 1, 4), ("first", 1, 2), ("split", 2, 4)])
def test_the_channels_option(channels: Channels, count: int, turns: int, listener: Listener, tmp_path: Path) -> None:
    listened = listen(listener, tmp_path / "call.wav", CALL, channels)
    assert (listened.channels, len(listened.clips)) == (count, turns)


def test_times_of_a_range_count_from_the_start_of_the_file(listener: Listener, tmp_path: Path) -> None:
    first, second = TURNS[1], TURNS[2]
    offset, end = first.start_s - 0.7, second.end_s + 0.7
    listened = listen(listener, tmp_path / "call.wav", CALL, offset=offset, duration=end - offset)
    assert_turns(listened.clips, (first, second))
    assert listened.duration_s == pytest.approx(end - offset, abs=0.001)


def test_silence_has_a_duration_and_no_clips(listener: Listener, tmp_path: Path) -> None:
    noise = (1e-3 * np.random.default_rng(0).standard_normal(5 * RATE)).astype(np.float32)
    for samples in (silence(5), noise):
        listened = listen(listener, tmp_path / "silence.wav", samples)
        assert listened == ListenResult(duration_s=5.0, speech_s=0.0, channels=1, clips=[])


def test_the_shortest_files(listener: Listener, tmp_path: Path) -> None:
    for size in (1, 100, 600):
        assert listen(listener, tmp_path / "short.wav", sentence("agent")[:size]).duration_s == size / RATE


def test_a_long_monologue_is_cut_into_clips_without_loss(tmp_path: Path) -> None:
    speech = np.concatenate([sentence("agent"), sentence("customer")])
    listened = listen(Listener(clip_s=5.0), tmp_path / "long.wav", np.tile(speech, 4))
    assert len(listened.clips) >= 6
    assert all(len(clip.samples) <= 5 * 16_000 for clip in listened.clips)
    assert sum(len(clip.samples) for clip in listened.clips) / 16_000 > 0.97 * 4 * len(speech) / RATE
    whole = at_rate(np.tile(speech, 4), 16_000)
    for clip in listened.clips[:-1]:  # cuts are in pauses, not in words
        at = round(clip.end_s * 16_000)
        assert np.abs(whole[at - 160 : at + 160]).mean() < 0.3 * np.abs(whole).mean()


def test_a_path_and_a_file_object_give_the_same_samples(listener: Listener, tmp_path: Path) -> None:
    data = sndfile(CALL, "OGG", "OPUS")
    (tmp_path / "call.ogg").write_bytes(data)
    file = io.BytesIO(data)
    remote = Listener(clip_s=30.0, open_audio=lambda uri: file).listen(Recording(id="1", audio="s3://b/call"))
    assert file.closed
    local = listener.listen(Recording(id="1", audio=(tmp_path / "call.ogg").as_uri()))
    assert [clip.samples.tobytes() for clip in remote.clips] == [clip.samples.tobytes() for clip in local.clips]
    assert len(local.clips) == 4


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (FileNotFoundError("s3://b/call"), "not_found"),
        (PermissionError("403"), "forbidden"),
        (RuntimeError("an SDK's own exception"), "unreadable"),
        (AudioError("forbidden", "from the storage layer"), "forbidden"),
    ],
)
def test_an_exception_of_the_opener_becomes_an_audio_error(raised: Exception, code: str) -> None:
    def fail(uri: str) -> Path:
        raise raised

    with pytest.raises(AudioError) as caught:
        Listener(clip_s=30.0, open_audio=fail).listen(Recording(id="1", audio="s3://b/call"))
    assert caught.value.code == code


def test_bad_audio_and_too_long(listener: Listener, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="not_found"):
        listener.listen(Recording(id="1", audio=str(tmp_path / "gone.wav")))
    with pytest.raises(AudioError, match="bad_range"):
        listen(listener, tmp_path / "call.wav", CALL, offset=CALL_S + 1)
    with pytest.raises(AudioError, match="too_long"):
        listen(Listener(clip_s=30.0, max_duration_s=5.0), tmp_path / "call.wav", CALL)


# Three hours take Silero some twenty seconds. Its output does not affect memory, so a level threshold replaces it.
THREE_HOURS = """
import re, sys
import numpy as np
import speech.listener
from speech.recording import Recording

class ByLevel:
    def initial_state(self):
        return None

    def __call__(self, windows, state):
        return ((windows ** 2).mean(axis=1) > 1e-5).astype(np.float32), state

speech.listener.load_silero = ByLevel
listened = speech.listener.Listener(clip_s=30.0).listen(Recording(id="1", audio=sys.argv[1]))
# Not ru_maxrss: a child inherits that of the process that it was forked from.
peak_mb = int(re.search("VmHWM: *([0-9]+)", open("/proc/self/status").read().replace("\t", " "))[1]) / 1024
heavy = "torch" in sys.modules or "ray" in sys.modules
print(listened.duration_s, listened.channels, listened.speech_s, peak_mb, heavy)
"""


@pytest.mark.slow
def test_three_hours_of_stereo_stay_under_600_mb(tmp_path: Path) -> None:
    samples, _ = call(exchanges=6, pause_s=0.8)
    minute = sndfile(samples, "WAV", "ULAW")
    header, body = minute[: minute.index(b"data") + 8], minute[minute.index(b"data") + 8 :][: 2 * len(samples)]
    times = 3 * 3600 * RATE * 2 // len(body)
    with (tmp_path / "call.wav").open("wb") as file:
        file.write(header[:-4] + (times * len(body)).to_bytes(4, "little"))
        for _ in range(times):
            file.write(body)
    done = subprocess.run(
        [sys.executable, "-c", THREE_HOURS, str(tmp_path / "call.wav")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    duration_s, channels, speech_s, peak_mb, heavy = done.stdout.split()
    assert float(duration_s) == pytest.approx(3 * 3600, abs=60)
    assert channels == "2"
    assert float(speech_s) > 0.6 * float(duration_s), "the call should be mostly speech"
    assert float(peak_mb) < 600
    assert heavy == "False", "torch or ray was imported"


RECORDING = Recording(id="1", audio="call.wav")
LONG_CALL = np.concatenate([CALL] * math.ceil(4 * PART_S / CALL_S))


def as_tuples(clips: Sequence[Clip]) -> list[tuple[int, float, float, bytes]]:
    return [(clip.channel, clip.start_s, clip.end_s, clip.samples.tobytes()) for clip in clips]


def test_a_long_recording_comes_in_parts(listener: Listener) -> None:
    file = io.BytesIO(sndfile(LONG_CALL, "WAV", "ULAW"))
    parts = listener.stream(RECORDING, file)
    first = next(parts)
    assert first.duration_s < len(LONG_CALL) / RATE / 2
    assert first.clips
    rest = list(parts)
    assert len(rest) > 1
    whole = listener.listen(RECORDING, file)
    assert as_tuples(join_parts([first, *rest]).clips) == as_tuples(whole.clips)
    assert replace(rest[-1], clips=[]) == replace(whole, clips=[])
    assert whole.duration_s == pytest.approx(len(LONG_CALL) / RATE)


@pytest.mark.parametrize(
    ("samples", "container", "coding"),
    [(LONG_CALL, "OGG", "VORBIS"), (LONG_CALL * 0.002, "WAV", "PCM_16")],
    ids=["format may change", "quiet"],
)
def test_what_the_rest_of_a_file_may_change_comes_at_once(
    listener: Listener, samples: np.ndarray, container: str, coding: str
) -> None:
    [whole] = listener.stream(RECORDING, io.BytesIO(sndfile(samples, container, coding)))
    assert len(whole.clips) > len(TURNS)


@pytest.mark.parametrize(("language", "several"), [("en", True), ("auto", False)])
def test_a_first_part_does_not_depend_on_time_where_the_language_is_detected(
    listener: Listener, language: str, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speech.listener.PART_AFTER_S", 0.0)
    recording = Recording(id="call", audio="call.wav", options=Options(language=language))
    parts = list(listener.stream(recording, io.BytesIO(sndfile(CALL, "WAV", "ULAW"))))
    assert (len(parts) > 1) == several
    assert sum(len(part.clips) for part in parts) == len(TURNS)
