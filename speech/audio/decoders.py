"""The two libraries that decode: libsndfile for what it reads exactly, FFmpeg for all the rest.

Each decoder answers the same three questions: rate, channels, and the samples from a given frame on.
Neither knows about ranges, limits or error codes; those are ``speech.audio.decoding``'s.

libsndfile is asked first, and only for files that begin as one of its own formats do, because it
decodes several times faster than FFmpeg, seeks to the exact sample and reads Sphere with every coding.
MP3 is FFmpeg's from the start: the MP3 decoder inside libsndfile prints its warnings to stderr.

FFmpeg is given a whitelist of containers. Playlists (HLS, concat) are left out of it on purpose: they
name other files and addresses, and what comes in may be a stranger's upload.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import av
import numpy as np
import soundfile

from speech.audio.source import Source

# Seconds decoded at a time: 500 of the VAD's windows in one call, so that no cost of a call shows, and
# only a megabyte of samples a channel.
BLOCK_S = 16
# A block of a file with many channels or a studio's sample rate stays small all the same.
_MAX_BLOCK_SAMPLES = 1 << 21

# Above any real length (2,000 years at 16 kHz); libsndfile says "unknown" with the largest integer it has.
_MAX_FRAMES = 1 << 50

_SNDFILE_MAGIC = re.compile(rb"RIFF|RIFX|RF64|riff|fLaC|OggS|FORM|\.snd|dns\.|NIST_1A|caff", re.DOTALL)
_FFMPEG_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flac,flv,g722,g726,g729,gsm,loas,matroska,mov,mp3,"
    "mpeg,mpegts,mpc,mpc8,nistsphere,ogg,sox,tta,voc,w64,wav,wv"
)
# Decoding that begins in mid-stream needs a run-up: Opus asks for 80 ms, MP3's bit reservoir for half a second.
_RUN_UP_S = 1.0
# Timestamps may wander by a packet (Matroska's are in milliseconds); a larger gap is one that was
# recorded: a sender that falls silent (Opus DTX, a muted microphone) leaves it out of the file.
_GAP_S = 0.05
# Beyond this a jump in timestamps is a broken file (two joined together), not silence.
_MAX_GAP_S = 3600.0
# Of the packets, so many may fail to decode: what a bad line does, not what a broken file is.
_MAX_BAD_SHARE = 0.05
# How often the demuxer may lose its way and look for the next packet.
_MAX_RESYNCS = 100
# Containers that write their duration down, and how far the audio may fall short of it.
_TIMED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_SLACK_S = 0.5


class DecodeError(Exception):
    """This library can't read this file: the reason, and the code it deserves if no other can either."""

    def __init__(self, reason: str, code: str = "unreadable") -> None:
        super().__init__(reason)
        self.code = code


class Decoder(Protocol):
    """One open file. ``frames`` is its length as declared or known, None where nobody can say."""

    sample_rate: int
    channels: int
    frames: int | None

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        """Samples from frame ``start`` to the file's end as float32 of shape (frames, channels).

        May be called again, for a second pass. Raises DecodeError where the file turns out damaged.
        """
        ...


def block_frames(sample_rate: int, channels: int) -> int:
    return max(1, min(BLOCK_S * sample_rate, _MAX_BLOCK_SAMPLES // channels))


class SndfileDecoder:
    """libsndfile, through soundfile."""

    name: ClassVar[str] = "libsndfile"

    def __init__(self, file: Source) -> None:
        self._file = file
        file.seek(0)
        if not _SNDFILE_MAGIC.match(file.read(8)):
            raise DecodeError("not one of its formats")
        with self._open() as sound:
            self.sample_rate: int = sound.samplerate
            self.channels: int = sound.channels
            self.frames: int | None = sound.frames
        if not self.frames or self.frames > _MAX_FRAMES:
            # Written to a pipe, so the length was never filled in. FFmpeg reads to the end whatever is there.
            raise DecodeError("its header gives no length")

    @contextlib.contextmanager
    def _open(self) -> Iterator[soundfile.SoundFile]:
        self._file.seek(0)
        descriptor = self._file.descriptor()
        try:
            with soundfile.SoundFile(self._file if descriptor is None else descriptor, closefd=False) as sound:
                yield sound
        except (soundfile.LibsndfileError, soundfile.SoundFileRuntimeError) as error:
            raise DecodeError(_sndfile_reason(error)) from error

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        size = block_frames(self.sample_rate, self.channels)
        with self._open() as sound:
            if sound.seekable():
                sound.seek(min(start, sound.frames))
            else:  # GSM 6.10: no way but through
                while start > 0 and (skipped := len(sound.read(min(size, start)))):
                    start -= skipped
            while len(block := sound.read(size, dtype="float32", always_2d=True)):
                yield block


class FFmpegDecoder:
    """FFmpeg's demuxers and decoders, through PyAV."""

    name: ClassVar[str] = "FFmpeg"

    def __init__(self, file: Source) -> None:
        self._file = file
        with self._open() as (container, stream):
            # The header's word is not enough: HE-AAC doubles its rate and Parametric Stereo its channels
            # only in the decoder, so the first frame is what counts.
            first = next(_decoded(container, stream, run_up=0.0), None)
            if first is None:
                raise DecodeError("it finds no samples", "empty")
            self.sample_rate: int = first.sample_rate
            self.channels: int = first.layout.nb_channels
            self.frames: int | None = _declared_frames(container, stream, self.sample_rate)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        self._file.seek(0)
        try:
            options = {"format_whitelist": _FFMPEG_CONTAINERS}
            with av.open(self._file, options=options, metadata_errors="ignore") as container:
                if not container.streams.audio:
                    raise DecodeError("it finds no audio track")
                stream = container.streams.audio[0]
                if stream.codec_context is None:
                    raise DecodeError("it knows no decoder for the audio track", "unsupported_codec")
                yield container, stream
        except (av.error.DecoderNotFoundError, av.error.PatchWelcomeError) as error:
            raise DecodeError("it has no decoder for the audio track", "unsupported_codec") from error
        except av.error.FFmpegError as error:
            raise DecodeError(error.strerror or type(error).__name__) from error

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        size = block_frames(self.sample_rate, self.channels)
        waiting: list[np.ndarray] = []
        held = 0
        for samples in self._samples(start):
            waiting.append(samples)
            held += len(samples)
            if held >= size:
                yield np.concatenate(waiting)
                waiting, held = [], 0
        if waiting:
            yield np.concatenate(waiting)

    def _samples(self, start: int) -> Iterator[np.ndarray]:
        """Each frame's samples from ``start`` on, with recorded gaps filled by silence."""
        rate, silence = self.sample_rate, np.zeros((self.sample_rate, self.channels), np.float32)
        with self._open() as (container, stream):
            origin = float((stream.start_time or 0) * stream.time_base)
            run_up = start / rate - _RUN_UP_S
            at = 0 if run_up <= 0 else None  # the next sample's position in the file
            for frame in _decoded(container, stream, run_up + origin):
                if (frame.sample_rate, frame.layout.nb_channels) != (rate, self.channels):
                    raise DecodeError("its sample rate or channels change on the way")
                stamp = at if frame.time is None else round((frame.time - origin) * rate)
                if at is None:
                    at = stamp or 0
                elif stamp is not None and _GAP_S * rate < stamp - at <= _MAX_GAP_S * rate:
                    while at < stamp:
                        gap = silence[: stamp - at]
                        yield gap[max(0, start - at) :]
                        at += len(gap)
                samples = _as_float(frame, self.channels)
                yield samples[max(0, start - at) :]
                at += len(samples)


def _decoded(container: Any, stream: Any, run_up: float) -> Iterator[Any]:
    """Decodes packet after packet; those that end before ``run_up`` (seconds) are stepped over.

    Stepping over is exact in every container, where seeking is not (MP3's table of contents knows
    hundredths of a file), and costs no decoding. A packet that doesn't decode is left out, as a player
    would; its time stays, because the next one brings its own stamp.
    """
    good = bad = lost = 0
    packets = container.demux(stream)
    tick = float(stream.time_base)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, EOFError):
            break
        except av.error.InvalidDataError:
            lost += 1
            if lost > _MAX_RESYNCS:
                raise
            continue
        if packet.pts is not None and (packet.pts + (packet.duration or 0)) * tick < run_up:
            continue
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            bad += 1
            continue
        good += 1
        yield from frames
    if bad > 1 + _MAX_BAD_SHARE * good:
        raise DecodeError(f"{bad} of {bad + good} packets are damaged")


def _declared_frames(container: Any, stream: Any, sample_rate: int) -> int | None:
    """Frames that must come if the file is whole, where its header says so and FFmpeg isn't estimating.

    FLAC counts samples. The others give times, of which half a second is left for priming and rounding.
    """
    if container.format.name == "flac" and stream.duration:
        return int(stream.duration * stream.time_base * sample_rate)
    duration = float(stream.duration * stream.time_base) if stream.duration else None
    if duration is None and container.duration and len(container.streams) == 1:
        duration = container.duration / av.time_base
    if duration is None or container.format.name not in _TIMED_CONTAINERS:
        return None
    return max(0, int((duration - _SLACK_S) * sample_rate))


def _as_float(frame: Any, channels: int) -> np.ndarray:
    """A frame's samples as float32 of shape (frames, channels), full scale at 1."""
    samples: np.ndarray = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32, copy=False)


def _sndfile_reason(error: Exception) -> str:
    reason = str(getattr(error, "error_string", None) or error)
    return reason.rstrip(".").removeprefix("Error : ")
