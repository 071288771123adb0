"""Which decoder reads which container, and whose statement of its length counts: one table, with the reasons.

libsndfile and FFmpeg decode a truncated file without an error, so half an upload would become half a transcript with
status ok. A file is ``truncated`` when what its length should be is known and is not there. But headers are often
wrong or unfinished, so for each container only the statement that can be relied on counts:

    declared_end     the header's length in bytes, compared with the file's size before anything is decoded
    ffmpeg_slack_s   FFmpeg's duration, compared with what was decoded, where ``declared_end`` returns None

libsndfile's count of frames is of the bytes that are there (or FLAC's STREAMINFO), so a shortfall is always damage.
A container that is not in the table has no length, and is decoded to the end of the file: raw AMR, raw AAC, MPEG-TS,
FLV. Neither has an MP3 without a Xing tag, nor an Ogg file truncated exactly between two pages, which looks like
a live stream that was stopped.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from speech.audio import headers, ogg
from speech.audio.source import Source, SourceRange

# Missing bytes that are tolerated: a pad byte, or a writer that counted its header twice.
_SLACK_BYTES = 256
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Container:
    """How one container is read.

    Attributes:
        name: for people.
        magic: what the file begins with.
        sndfile: whether libsndfile is tried before FFmpeg.
        declared_end: returns the offset at which the header says that the data ends, None if it does not.
        ffmpeg_slack_s: by how much the audio may fall short of the duration that FFmpeg reads; None: it is not used.
        reason: why.
        slack_bytes: by how much the file may fall short of ``declared_end``.
        links: returns the offsets at which complete files begin, one behind the other; None: there is only one.
        repaired: returns header fields to read in place of the file's wrong ones, by offset.
    """

    name: str
    magic: re.Pattern[bytes]
    sndfile: bool
    declared_end: Callable[[Source, int], int | None] | None
    ffmpeg_slack_s: float | None
    reason: str
    slack_bytes: int = _SLACK_BYTES
    links: Callable[[Source, int], list[int]] | None = None
    repaired: Callable[[Source, int], dict[int, bytes]] | None = None


def _magic(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


CONTAINERS = (
    Container(
        "MPEG audio in WAV",
        _magic(rb"RIFF....WAVE.{0,2000}?fmt .{4}[\x50\x55]\0"),
        sndfile=False,
        declared_end=headers.riff,
        ffmpeg_slack_s=None,
        reason="libsndfile counts samples that the decoder's delay takes away; FFmpeg estimates from the bit rate",
    ),
    Container(
        "WAV",
        _magic(rb"(?:RIFF|RIFX|RF64|BW64)....WAVE"),
        sndfile=True,
        declared_end=headers.riff,
        ffmpeg_slack_s=None,
        reason="the data chunk's size is exact, unless samples follow it, as after a crash of the recorder; FFmpeg's "
        "duration is an estimate from the bit rate",
        links=headers.riff_links,
        repaired=headers.riff_data_size,
    ),
    Container(
        "AVI",
        _magic(rb"RIFF....AVI[ X]"),
        sndfile=False,
        declared_end=headers.avi,
        ffmpeg_slack_s=None,
        reason="the RIFF size is exact; a track may end before the duration of the header, which is the video's",
    ),
    Container(
        "Wave64",
        _magic(rb"riff\x2e\x91\xcf\x11"),
        sndfile=True,
        declared_end=headers.wave64,
        ffmpeg_slack_s=None,
        reason="the riff size is exact; FFmpeg's duration is an estimate from the bit rate",
        repaired=headers.wave64_data_size,
    ),
    Container(
        "AIFF",
        _magic(rb"FORM....AIF[FC]"),
        sndfile=True,
        declared_end=headers.aiff,
        ffmpeg_slack_s=None,
        reason="the FORM size is exact; FFmpeg repeats COMM's count of frames, which a pipe leaves unknown",
    ),
    Container(
        "CAF",
        _magic(rb"caff"),
        sndfile=True,
        declared_end=headers.caf,
        ffmpeg_slack_s=None,
        reason="the data chunk's size is exact",
    ),
    Container(
        "AU",
        _magic(rb"\.snd|dns\."),
        sndfile=True,
        declared_end=headers.au,
        ffmpeg_slack_s=None,
        reason="the header's data size is exact",
    ),
    Container(
        "NIST Sphere",
        _magic(rb"NIST_1A\n"),
        sndfile=True,
        declared_end=headers.sphere,
        ffmpeg_slack_s=None,
        reason="the header counts samples of a known width",
    ),
    Container(
        "FLAC",
        _magic(rb"fLaC"),
        sndfile=True,
        declared_end=None,
        ffmpeg_slack_s=0.0,
        links=headers.flac_links,
        reason="STREAMINFO counts samples exactly, and nothing counts bytes; after a pipe the count is zero: unknown",
    ),
    Container(
        "Ogg",
        _magic(rb"OggS\0"),
        sndfile=False,
        declared_end=ogg.declared_end,
        ffmpeg_slack_s=None,
        slack_bytes=0,
        links=ogg.link_starts,
        reason="pages have lengths; granule positions count holes (DTX, mute) and restart with each link. libsndfile "
        "reads only the first link and takes a hole for the end; FFmpeg decodes Opus in half the time besides",
    ),
    Container(
        "MP4",
        _magic(rb"....(?:ftyp|moov|mdat|wide|free|skip)"),
        sndfile=False,
        declared_end=headers.mp4,
        ffmpeg_slack_s=0.5,
        reason="boxes have lengths, and what is behind the last is not audio (tags); the index's duration counts "
        "where the last box extends to the end of the file, less priming and rounding",
    ),
    Container(
        "Matroska",
        _magic(rb"\x1a\x45\xdf\xa3"),
        sndfile=False,
        declared_end=headers.matroska,
        ffmpeg_slack_s=0.5,
        reason="the Segment has a length unless it was written live; the Duration counts only then, and from the first "
        "timestamp, because some writers count from it and others from zero",
    ),
    Container(
        "ASF",
        _magic(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
        sndfile=False,
        declared_end=headers.asf,
        ffmpeg_slack_s=None,
        reason="the header has the file's size unless it is a broadcast",
    ),
    Container(
        "AMR",
        _magic(rb"#!AMR"),
        sndfile=False,
        declared_end=None,
        ffmpeg_slack_s=None,
        reason="frames have lengths, but nothing counts them",
    ),
    Container(
        "MP3",
        _magic(rb"ID3"),
        sndfile=False,
        declared_end=headers.mpeg_audio,
        ffmpeg_slack_s=None,
        reason="a Xing tag counts bytes; FFmpeg's duration is an estimate where there is none. libsndfile's MP3 "
        "decoder prints warnings to stderr",
    ),
)
# Eleven bits in a row are a weak magic: raw mu-law begins with them in silence.
MPEG_SYNC = replace(CONTAINERS[-1], magic=_magic(rb"\xff[\xe0-\xff]"))
UNKNOWN = Container("unknown", _magic(rb""), False, None, None, "neither bytes nor times are declared")


def identify(file: Source, size: int) -> Container:
    """The container by the file's first bytes; UNKNOWN if it is none of the table's."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    return next((container for container in (*CONTAINERS, MPEG_SYNC) if container.magic.match(head)), UNKNOWN)


def without_id3(file: Source, size: int) -> tuple[Source, int]:
    """The file and its size, without ID3v2 tags in front and an ID3v1 tag behind.

    MPEG audio keeps its tags: FFmpeg reads them, and they help to identify it.
    """
    rest, end = file, size
    while 0 < (start := headers.id3v2_end(rest)) < end:
        rest, end = SourceRange(rest, start), end - start
    container = identify(rest, end)
    if container in (MPEG_SYNC, UNKNOWN):
        return file, size
    # libsndfile's containers have their length at the beginning. Nothing is behind what it says; and the end of a file
    # that is being uploaded would have to be waited for.
    if container.sndfile and container.declared_end and container.declared_end(rest, end) == end:
        return rest, end
    rest.seek(max(0, end - headers.ID3V1_BYTES))
    if rest.read(3) == b"TAG":
        end -= headers.ID3V1_BYTES
        rest = SourceRange(rest, 0, end)
    return rest, end


def missing_bytes(container: Container, file: Source, size: int) -> int:
    """The number of bytes that the header declares beyond the file's ``size``; 0 when the file is complete."""
    end = container.declared_end(file, size) if container.declared_end else None
    return 0 if end is None or end - size <= container.slack_bytes else end - size
