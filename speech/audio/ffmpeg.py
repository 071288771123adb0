"""FFmpeg's demuxers and decoders, through PyAV: every audio track of a file, on one timeline.

Only audio decoders and a whitelist of containers are used. Playlists (HLS, concat) are not on it: they name other
files and addresses, and an upload may be hostile. Video is never decoded, not even to probe it.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import av
import numpy as np

from speech.audio import SAMPLE_RATE
from speech.audio.decoders import DecodeError, FormatChanged, Piece, block_frames, in_format
from speech.audio.source import Source, SourceRange

_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flac,flv,g722,g726,g726le,g729,gsm,loas,matroska,mov,"
    "mp3,mpeg,mpegts,mpc,mpc8,nistsphere,ogg,sox,tta,voc,w64,wav,wv"
)
# What the containers above hold in practice: telephony, broadcast, the web, archives.
AUDIO_DECODERS = frozenset(
    "aac aac_latm ac3 adpcm_adx adpcm_ima_oki adpcm_ima_qt adpcm_ima_wav adpcm_ms adpcm_sbpro_2 "
    "adpcm_sbpro_3 adpcm_sbpro_4 adpcm_swf adpcm_yamaha alac als amrnb amrwb ape dca dss_sp eac3 evrc flac g722 g723_1 "
    "g726 g726le g729 gsm gsm_ms ilbc mp1 mp1float mp2 mp2float mp3 mp3adu mp3adufloat mp3float mp3on4 mp3on4float "
    "mpc7 mpc8 nellymoser opus pcm_alaw pcm_bluray pcm_dvd pcm_f32be pcm_f32le pcm_f64be pcm_f64le pcm_mulaw "
    "pcm_s16be pcm_s16be_planar pcm_s16le pcm_s16le_planar pcm_s24be pcm_s24le pcm_s24le_planar pcm_s32be pcm_s32le "
    "pcm_s32le_planar pcm_s64be pcm_s64le pcm_s8 pcm_s8_planar pcm_u16be pcm_u16le pcm_u24be pcm_u24le pcm_u32be "
    "pcm_u32le pcm_u8 qcelp shorten sipr siren speex tak truehd truespeech tta vorbis wavpack wmalossless wmapro "
    "wmav1 wmav2 wmavoice".split()
)
_OPTIONS = {"format_whitelist": _CONTAINERS, "codec_whitelist": ",".join(sorted(AUDIO_DECODERS))}

# Decoding from the middle of a stream needs a pre-roll: 80 ms for Opus (RFC 7845, 4.6), half a second for MP3's bit
# reservoir.
_PRE_ROLL_S = 1.0
# Timestamps may be off by a packet (Matroska's are in milliseconds). A larger gap is silence that the sender did not
# transmit (Opus DTX, a muted microphone).
_GAP_S = 0.05
# A larger jump in timestamps, or one back, is a damaged file or two joined ones, not silence; later timestamps count
# from there.
_MAX_GAP_S = 3600.0
_RESET_S = 1.0
# Of frames that become one array.
_JOINED_S = 1.0
# The share of packets that may fail to decode, as transmission errors cause; above it the file is damaged.
_MAX_BAD_SHARE = 0.05
# How many times the demuxer may lose synchronisation.
_MAX_RESYNCS = 100
# AMR frame types without speech, which FFmpeg's decoders refuse: SID (comfort noise) of AMR and of the codecs that it
# carries, speech lost, NO_DATA (3GPP TS 26.101, table 1a; TS 26.201, table 1a). A frame is 20 ms.
_AMR_SILENCE = {"amrnb": frozenset(range(8, 16)), "amrwb": frozenset(range(9, 16))}
_AMR_FRAME_S = 0.02


@dataclass
class _Track:
    """One audio track.

    Attributes:
        stream: its index among the container's streams.
        rate, channels: of its first samples, until more come.
        end_s: where its duration or the container's ends, in the file's time; None if neither is declared.
    """

    stream: int
    rate: int
    channels: int
    end_s: float | None


class FFmpegDecoder:
    """All audio tracks of a file as channels, in track order; shorter tracks are followed by silence.

    Time begins with the earliest track, video included: audio that begins later is preceded by silence.

    Args:
        file: what to decode.
        slack_s: by how much the audio may fall short of the declared duration; None: ``frames`` is unknown.
        demuxer: for a file without a header, which FFmpeg cannot identify.
        options: of the demuxer.
    """

    name: ClassVar[str] = "FFmpeg"

    def __init__(
        self,
        file: Source,
        slack_s: float | None = None,
        demuxer: str | None = None,
        options: dict[str, str] | None = None,
    ) -> None:
        self._file = file
        self._demuxer = demuxer
        self._options = _OPTIONS | (options or {})
        self._tracks = self._probe()
        self._update_format()
        ends = [track.end_s for track in self._tracks if track.end_s is not None]
        self.frames: int | None = None
        if slack_s is not None and ends:
            self.frames = max(0, int((max(ends) - slack_s) * self.sample_rate))

    def _update_format(self) -> None:
        self.sample_rate = max(track.rate for track in self._tracks)
        self.channels = sum(track.channels for track in self._tracks)

    def _probe(self) -> list[_Track]:
        """The tracks with samples.

        The header's rate and channels are not enough: HE-AAC doubles the rate, and Parametric Stereo the channels,
        only in the decoder. The first samples have the real values.
        """
        tracks: list[_Track] = []
        with self._open(self._file) as container:
            self._start_s = (container.start_time or 0) / av.time_base
            first, *others = _decodable(container)
            self.skipped_tracks = len(container.streams.audio) - len(others) - 1
            tracks += _first_samples(container, first, self._start_s)
        for index in others:
            with self._open(self._file) as container:
                tracks += _first_samples(container, index, self._start_s)
        if not tracks:
            raise DecodeError("it finds no samples", "empty")
        return tracks

    @contextlib.contextmanager
    def _open(self, file: Source) -> Iterator[Any]:
        file.seek(0)
        try:
            with av.open(file, format=self._demuxer, options=self._options, metadata_errors="ignore") as container:
                yield container
        except (av.error.DecoderNotFoundError, av.error.PatchWelcomeError) as error:
            raise DecodeError("it has no decoder for the audio track", "unsupported_codec") from error
        except av.error.FFmpegError as error:
            raise DecodeError(error.strerror or type(error).__name__) from error

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        size = block_frames(self.sample_rate, self.channels)
        try:
            if len(self._tracks) == 1:
                yield from _in_blocks(self._track_samples(self._tracks[0], self._file, start), size)
            else:
                yield from self._joined_blocks(start, size)
        except FormatChanged:
            self._update_format()
            raise

    def _joined_blocks(self, start: int, size: int) -> Iterator[np.ndarray]:
        """The tracks' blocks side by side, each from a container of its own: tracks need not be interleaved."""
        tracks = [
            _in_blocks(self._track_samples(track, SourceRange(self._file), start), size) for track in self._tracks
        ]
        for blocks in itertools.zip_longest(*tracks):
            out = np.zeros((max(len(block) for block in blocks if block is not None), self.channels), np.float32)
            column = 0
            for track, block in zip(self._tracks, blocks, strict=True):
                if block is not None:
                    out[: len(block), column : column + track.channels] = block
                column += track.channels
            yield out

    def _track_samples(self, track: _Track, file: Source, start: int) -> Iterator[np.ndarray]:
        """One track's samples from frame ``start`` on, in its channels at the file's rate."""
        rate = self.sample_rate
        pieces = self._continuous(track, file, start / rate - _PRE_ROLL_S)
        first = next(pieces, None)
        if first is None:
            return
        skip = start - round((first.time_s or 0.0) * rate)
        formatted = in_format(itertools.chain([first], pieces), rate, track.channels)
        while skip > 0:
            samples = next(formatted, None)
            if samples is None:
                return
            yield samples[skip:]
            skip -= len(samples)
        yield from formatted

    def _continuous(self, track: _Track, file: Source, pre_roll_s: float) -> Iterator[Piece]:
        """A track's pieces in the file's time, with gaps filled with silence and timestamps without jumps."""
        with self._open(file) as container:
            offset_s = self._start_s
            at = max(0.0, pre_roll_s)  # where the next sample belongs
            started, first_rate = False, None
            for piece in _pieces(container, container.streams[track.stream], pre_roll_s + self._start_s):
                rate, (frames, channels) = piece.rate, piece.samples.shape
                if channels > track.channels or track.rate < min(rate, SAMPLE_RATE):
                    track.channels, track.rate = max(track.channels, channels), max(track.rate, min(rate, SAMPLE_RATE))
                    raise FormatChanged
                first_rate = first_rate or rate
                # Demuxers of streams without timestamps (raw AAC) count packets at the first rate.
                stamp = at if piece.time_s is None or rate != first_rate else piece.time_s - offset_s
                if _GAP_S < stamp - at <= _MAX_GAP_S:
                    yield from _silence(at, stamp, rate, channels)
                    at = stamp
                elif not started and pre_roll_s > 0:
                    at = stamp
                elif not -_RESET_S < stamp - at <= _MAX_GAP_S:
                    offset_s += stamp - at
                yield piece if started else Piece(rate, piece.samples, at)
                started = True
                at += frames / rate


def _decodable(container: Any) -> list[int]:
    """The indexes of the audio streams with a decoder.

    Raises:
        DecodeError: there is none.
    """
    streams = list(container.streams.audio)
    if not streams:
        raise DecodeError("it finds no audio track")
    decodable = [
        stream.index
        for stream in streams
        if stream.codec_context is not None and stream.codec_context.name in AUDIO_DECODERS
    ]
    if not decodable:
        raise DecodeError("it has no decoder for the audio track", "unsupported_codec")
    return decodable


def _first_samples(container: Any, index: int, start_s: float) -> list[_Track]:
    """The track of a stream, or none if it has no samples."""
    stream = container.streams[index]
    first = next(_pieces(container, stream, 0.0), None)
    if first is None:
        return []
    end_s: float | None = None
    if stream.duration:
        begins = float((stream.start_time or 0) * stream.time_base)
        end_s = begins - start_s + float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:
        end_s = container.duration / av.time_base - start_s
    return [_Track(index, first.rate, first.samples.shape[1], end_s)]


def _pieces(container: Any, stream: Any, pre_roll_s: float) -> Iterator[Piece]:
    """Decodes a stream from the first packet that ends at ``pre_roll_s`` (its own time) or later.

    Packets before it are demuxed and not decoded: that is exact in every container, where seeking is not (MP3's table
    of contents has a resolution of a hundredth of the file). A packet that fails to decode is skipped; timestamps
    keep the later ones in place.
    """
    good = bad = 0
    tick = float(stream.time_base)
    silent_types = _AMR_SILENCE.get(stream.codec_context.name)
    joined = _JoinedFrames()
    for packet in _packets(container, stream):
        if packet.pts is not None and (packet.pts + (packet.duration or 0)) * tick < pre_roll_s:
            continue
        if silent_types and packet.size and bytes(packet)[0] >> 3 & 0xF in silent_types:
            good += 1
            yield from joined.pop()
            rate = stream.codec_context.sample_rate
            time_s = None if packet.pts is None else packet.pts * tick
            yield Piece(rate, np.zeros((round(_AMR_FRAME_S * rate), 1), np.float32), time_s)
            continue
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            bad += 1
            continue
        good += 1
        for frame in frames:
            if not joined.fits(frame):
                yield from joined.pop()
            joined.add(frame)
    yield from joined.pop()
    if bad > 1 + _MAX_BAD_SHARE * good:
        raise DecodeError(f"{bad} of {bad + good} packets are damaged")


class _JoinedFrames:
    """Consecutive frames, until they are _JOINED_S long: a codec's are of 20 ms, and each piece costs some 20 us."""

    def __init__(self) -> None:
        self._fifo = av.AudioFifo()
        self._format: tuple[Any, ...] = ()
        self._time_s: float | None = None  # of the first
        self._frames = 0

    def fits(self, frame: Any) -> bool:
        """Whether the frame goes on in the same format, where the others end."""
        if not self._frames:
            return True
        rate = frame.sample_rate
        if self._format != _format(frame) or self._frames >= _JOINED_S * rate:
            return False
        if frame.time is None or self._time_s is None:
            return frame.time is self._time_s
        return bool(abs(frame.time - self._time_s - self._frames / rate) <= _GAP_S)

    def add(self, frame: Any) -> None:
        if not self._frames:
            self._format, self._time_s = _format(frame), frame.time
        self._frames += frame.samples
        frame.pts = None  # which the FIFO would compare with its own
        self._fifo.write(frame)

    def pop(self) -> Iterator[Piece]:
        """All of them as one piece; none if there are none."""
        joined, time_s = self._fifo.read(), self._time_s
        self._fifo, self._frames = av.AudioFifo(), 0
        if joined is not None:
            yield Piece(joined.sample_rate, _as_float(joined), time_s)


def _format(frame: Any) -> tuple[Any, ...]:
    return frame.sample_rate, frame.format.name, frame.layout.name, frame.layout.nb_channels


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """A stream's packets; where the demuxer loses synchronisation it goes on with the next."""
    packets = container.demux(stream)
    for _ in range(_MAX_RESYNCS):
        try:
            yield from packets
            return
        except EOFError:
            return
        except av.error.InvalidDataError:
            packets = container.demux(stream)
    raise DecodeError(f"the demuxer lost synchronisation {_MAX_RESYNCS} times")


def _silence(start_s: float, end_s: float, rate: int, channels: int) -> Iterator[Piece]:
    """Silence from one time to another, in pieces of at most a second."""
    left = round((end_s - start_s) * rate)
    while left > 0:
        size = min(left, rate)
        yield Piece(rate, np.zeros((size, channels), np.float32), start_s)
        start_s += size / rate
        left -= size


def _in_blocks(pieces: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of ``size`` frames, the last of them shorter."""
    pending: list[np.ndarray] = []
    frames = 0
    for piece in pieces:
        pending.append(piece)
        frames += len(piece)
        while frames >= size:
            joined = np.concatenate(pending)
            yield joined[:size]
            pending, frames = [joined[size:]], frames - size
    if frames:
        yield np.concatenate(pending)


def _as_float(frame: Any) -> np.ndarray:
    """A frame's samples as float32 of shape (frames, channels), full scale at 1."""
    samples: np.ndarray = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if samples.dtype == np.float32:
        return samples
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32)
