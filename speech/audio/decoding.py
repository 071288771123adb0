"""Decodes audio of any container and codec to blocks of float32 samples, or raises an AudioError.

``open_audio`` finds the decoder: by the file's first bytes (``containers``), else by its name or the option
``raw_format`` (``raw``). ``AudioFile.blocks`` reads a time range of the file in blocks of some seconds; ``resampled``
converts them to the 16 kHz of the VAD and the models. A whole file is never in memory. The decoded length is compared
with the declared one: half a file is an error (``truncated``), not half a transcript.

The choice of channels belongs to ``speech.audio.channels``, the opening of URIs to ``speech.listener.Listener``.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr

from speech.audio import SAMPLE_RATE
from speech.audio.containers import MPEG_SYNC, UNKNOWN, Container, identify, missing_bytes, without_id3
from speech.audio.decoders import ChainDecoder, DecodeError, Decoder, FormatChanged, SndfileDecoder
from speech.audio.ffmpeg import FFmpegDecoder
from speech.audio.source import Source, SourceRange
from speech.errors import AudioError, StorageError, audio_error_kind
from speech.raw_format import RawFormat, raw_format_of

# Outside this range the header is damaged: speech needs more, and no recorder samples faster.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000
MAX_CHANNELS = 32
# A working day. At 16 kHz that is at most 0.9 GB of int16 speech a channel.
MAX_DURATION_S = 8 * 3600.0
# Of all channels together: four of a working day.
MAX_CHANNEL_S = 4 * MAX_DURATION_S
# Full scale is 1. A loud float mix may exceed it a few times; values in the thousands are integers stored as floats.
_MAX_SAMPLE = 32.0

_RAW_HINT = "; if it is audio without a header, name its format with raw_format (--raw-format g722)"
_GSM_FRAME_BYTES = 33
_GSM_SIGNATURE = 0xD

AudioSource = BinaryIO | str | os.PathLike[str]


class AudioFile:
    """An open audio file, of which any time range can be read, more than once. Made by ``open_audio``."""

    def __init__(
        self, source: Source, decoder: Decoder, name: str, missing: int, max_duration_s: float, max_channel_s: float
    ) -> None:
        self._source = source
        self._decoder = decoder
        self._name = name
        self._missing = missing
        self._max_duration_s = max_duration_s
        self._max_channel_s = max_channel_s

    @property
    def sample_rate(self) -> int:
        """Hz. Grows, as ``channels`` does, when a part of the file has more: see ``blocks``."""
        return self._decoder.sample_rate

    @property
    def channels(self) -> int:
        return self._decoder.channels

    @property
    def fixed_format(self) -> bool:
        """Whether ``sample_rate`` and ``channels`` stay as they are: ``blocks`` never raises FormatChanged."""
        return isinstance(self._decoder, SndfileDecoder)

    @property
    def skipped_tracks(self) -> int:
        """How many audio tracks have no decoder; their speech is missing."""
        return self._decoder.skipped_tracks

    def blocks(self, offset: float = 0.0, duration: float | None = None) -> Iterator[np.ndarray]:
        """Samples at the file's own rate, float32, of shape (frames, channels).

        Args:
            offset: seconds into the file.
            duration: seconds to read; None, or more than the file has: to the end.

        Raises:
            AudioError: ``bad_range`` when the offset is at or after the end, ``too_long``,
                ``truncated``, ``empty`` or ``unreadable``.
            FormatChanged: the file goes on with more channels or a higher rate, which ``channels`` and
                ``sample_rate`` are now; the blocks before are to be read again.
        """
        if duration is None and self._missing:  # before decoding an hour of it
            raise self._truncated()
        rate = self.sample_rate
        start = round(offset * rate)
        wanted = None if duration is None else max(1, round(duration * rate))
        delivered = 0
        damage: DecodeError | None = None
        try:
            for block in self._decoder.blocks(start):
                block = block if wanted is None else block[: wanted - delivered]
                if not len(block):
                    continue
                delivered += len(block)
                self._check(block, delivered)
                yield block
                if delivered == wanted:
                    return
        except DecodeError as error:
            damage = error
        except FormatChanged:
            _check_header(self._decoder, self._name)
            raise
        # The file ended before the range did: compare with its declared end.
        self._check_source()
        frames = self._decoder.frames
        if self._missing:
            raise self._truncated() from damage
        if frames is not None and start < frames and start + delivered < frames:
            raise AudioError(
                "truncated",
                f"{self._name} is truncated or damaged: "
                f"{(start + delivered) / rate:.1f} s of {frames / rate:.1f} s decode",
            ) from damage
        if damage is not None:
            raise AudioError(damage.code, f"{self._name} is damaged: {damage}") from damage
        if not delivered and start:
            raise AudioError("bad_range", f"{self._name} ends before the offset of {offset:g} s")
        if not delivered:
            raise AudioError("empty", f"{self._name} holds no samples")

    def _check_source(self) -> None:
        try:
            self._source.raise_caught()
        except OSError as error:
            raise _io_error(error, self._name) from error

    def _check(self, block: np.ndarray, delivered: int) -> None:
        if not max(block.max(), -block.min()) <= _MAX_SAMPLE:  # written so that NaN fails it too
            raise AudioError("unreadable", f"{self._name} holds samples that are not audio (NaN, Inf or far beyond 1)")
        if delivered > self._max_duration_s * self.sample_rate:
            hours = self._max_duration_s / 3600
            raise AudioError(
                "too_long", f"{self._name} is longer than {hours:g} h; split it, or give rows with offset and duration"
            )
        if delivered * self.channels > self._max_channel_s * self.sample_rate:
            hours = self._max_channel_s / 3600
            raise AudioError(
                "too_long",
                f"the {self.channels} channels of {self._name} are longer than {hours:g} h together; split it",
            )

    def _truncated(self) -> AudioError:
        return AudioError(
            "truncated", f"{self._name} is truncated: {self._missing:,} bytes that its header declares are missing"
        )


@contextlib.contextmanager
def open_audio(
    source: AudioSource,
    name: str | None = None,
    *,
    max_duration_s: float = MAX_DURATION_S,
    max_channel_s: float = MAX_CHANNEL_S,
    raw_format: str | None = None,
) -> Iterator[AudioFile]:
    """Opens a path, or a seekable binary file that the caller closes.

    Args:
        source: a path or a file.
        name: its name in messages, and for raw audio the source of its format; by default the path.
        max_duration_s: a time range longer than this is ``too_long``.
        max_channel_s: so is one whose channels together are longer than this.
        raw_format: the format if the file has no header (``speech.raw_format``).

    Raises:
        AudioError: ``not_found``, ``forbidden``, ``empty``, ``unsupported_codec``, ``truncated`` or
            ``unreadable``; the message of the latter three has each decoder's reason.
    """
    name = name or str(getattr(source, "name", source))
    with contextlib.ExitStack() as stack:
        try:
            if isinstance(source, (str, os.PathLike)):
                if Path(source).is_fifo():  # opening it would wait for its writer
                    raise AudioError("unreadable", f"{name} is a FIFO, not a file")
                source = stack.enter_context(Path(source).open("rb", buffering=0))
            file = Source(source)
            size = file.seek(0, os.SEEK_END)
            file.raise_caught()
            if not size:
                raise AudioError("empty", f"{name} has 0 bytes")
            file, size = without_id3(file, size)
            container = identify(file, size)
            parts = _parts(container, file, size)
            missing = missing_bytes(container, *parts[-1])
            decoder = _decoder(container, parts, name, raw_format, missing)
        except OSError as error:
            raise _io_error(error, name) from error
        _check_header(decoder, name)
        yield AudioFile(file, decoder, name, missing, max_duration_s, max_channel_s)


def resampled(blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks of shape (frames, channels) at 16 kHz, aligned with the input's first sample."""
    if sample_rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = None
    for block in blocks:
        if stream is None:
            stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, block.shape[1], dtype="float32")
            channels = block.shape[1]
        out = stream.resample_chunk(block)
        if len(out):
            yield out
    if stream is not None:
        out = stream.resample_chunk(np.zeros((0, channels), np.float32), last=True)
        if len(out):
            yield out


Candidate = tuple[str, Callable[[], Decoder]]


def _parts(container: Container, file: Source, size: int) -> list[tuple[Source, int]]:
    """The complete files, one behind the other, that a file is made of, and their sizes."""
    starts = container.links(file, size) if container.links else [0]
    if len(starts) == 1:
        return [(file, size)]
    return [(SourceRange(file, start, end), end - start) for start, end in itertools.pairwise([*starts, size])]


def _decoder(
    container: Container, parts: list[tuple[Source, int]], name: str, raw_format: str | None, missing: int
) -> Decoder:
    """The decoder of all parts; those without samples are left out unless all are."""
    decoders: list[Decoder] = []
    empty: AudioError | None = None
    for part, size in parts:
        candidates = _candidates(container, part, size, name, raw_format)
        try:
            decoders.append(_first_decoder(candidates, part, name, missing, _hint(container)))
        except AudioError as error:
            if error.code != "empty":
                raise
            empty = error
    if empty and not decoders:
        raise empty
    return decoders[0] if len(decoders) == 1 else ChainDecoder(decoders)


def _may_be_raw(container: Container) -> bool:
    return container in (UNKNOWN, MPEG_SYNC)


def _hint(container: Container) -> str:
    return _RAW_HINT if _may_be_raw(container) else ""


def _candidates(
    container: Container, file: Source, size: int, name: str, raw_format: str | None
) -> Iterator[Candidate]:
    """The decoders to try, in order, each by its library's name."""
    if _may_be_raw(container) and (raw := raw_format_of(name, raw_format)):
        yield "raw audio", functools.partial(_raw_decoder, file, raw)
        return
    if container.repaired and (replaced := container.repaired(file, size)):
        file = SourceRange(file, replaced=replaced)
    if container.sndfile:
        yield SndfileDecoder.name, functools.partial(SndfileDecoder, file)
    # A length in bytes is more reliable than a duration, which counts only where there is none.
    known = container.declared_end is not None and container.declared_end(file, size) is not None
    slack_s = None if known else container.ffmpeg_slack_s
    yield FFmpegDecoder.name, functools.partial(FFmpegDecoder, file, slack_s)


def _raw_decoder(file: Source, raw: RawFormat) -> Decoder:
    if raw.subtype is None:
        return FFmpegDecoder(file, demuxer=raw.demuxer, options=dict(raw.options))
    if raw.subtype == "GSM610":
        _require_gsm(file)
    return SndfileDecoder(
        file, format="RAW", subtype=raw.subtype, samplerate=raw.rate, channels=raw.channels, endian="LITTLE"
    )


def _require_gsm(file: Source) -> None:
    """Raises DecodeError unless the first frames begin with GSM 06.10's signature (RFC 3551, 4.5.8)."""
    file.seek(0)
    head = file.read(4 * _GSM_FRAME_BYTES)
    if any(byte >> 4 != _GSM_SIGNATURE for byte in head[::_GSM_FRAME_BYTES]):
        raise DecodeError("it is not GSM 06.10: a frame does not begin with its signature")


def _first_decoder(candidates: Iterable[Candidate], file: Source, name: str, missing: int, hint: str) -> Decoder:
    attempts: list[str] = []
    codes: list[str] = []
    cause: DecodeError | None = None
    for library, make in candidates:
        try:
            return make()
        except DecodeError as error:
            attempts.append(f"{library}: {error}")
            codes.append(error.code)
            cause = error
        finally:
            file.raise_caught()
    # The last decoder reads the most formats, so its code is reported, unless the file is truncated.
    code = "truncated" if missing else codes[-1]
    raise AudioError(code, f"{name} cannot be decoded ({'; '.join(attempts)}){hint}") from cause


def _check_header(decoder: Decoder, name: str) -> None:
    if not MIN_SAMPLE_RATE <= decoder.sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            "unreadable",
            f"{name} declares {decoder.sample_rate} samples a second; "
            f"supported are {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}; the header is probably damaged",
        )
    if not 1 <= decoder.channels <= MAX_CHANNELS:
        raise AudioError(
            "unreadable", f"{name} declares {decoder.channels} channels; supported are 1 to {MAX_CHANNELS}"
        )


def _io_error(error: OSError, name: str) -> AudioError:
    reason = error.strerror or str(error) or type(error).__name__
    kind = audio_error_kind(error)
    if isinstance(error, FileNotFoundError):
        if error.filename and not Path(error.filename).parent.is_dir():
            folder = Path(error.filename).parent
            return StorageError("not_found", f"this machine has no folder {folder}: mount it, or correct the path")
        return kind("not_found", f"there is no file {name}")
    if isinstance(error, PermissionError):
        return kind("forbidden", f"{name} may not be read: {reason}")
    return kind("unreadable", f"{name} cannot be read: {reason}")
