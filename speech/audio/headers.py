"""The size in bytes that a file's header declares, to detect truncated files before decoding.

libsndfile and FFmpeg decode a truncated file without an error, so half an upload would become half a transcript
with status ok. Most containers store how many bytes follow; that number is compared with the file's size.

Limits: raw AMR, raw AAC, FLAC and MP3 without a Xing tag declare no size (FLAC declares a number of samples, which
``speech.audio.decoding`` compares with the number decoded). An Ogg file truncated exactly between two pages cannot be
told from a live stream that was stopped, and counts as complete.

A length of zero or near the maximum of its field is what a writer to a pipe leaves in the header. It counts as
unknown, and the file is read to its end.
"""

import re
import struct
from collections.abc import Callable

from speech.audio.source import Source

# ffmpeg writes 0xFFFFFFFF, sox and arecord 0x7FFF… or 0x8000…, when the length is unknown.
_UNKNOWN_FROM = 0x7FFF_0000
# Missing bytes that are tolerated: a pad byte, or a writer that counted its header twice.
_SLACK_BYTES = 256
# Searched for the last page: an Ogg page is at most 65,307 bytes.
_OGG_TAIL_BYTES = 1 << 17
_MAX_CHUNKS = 1000


def missing_bytes(file: Source, size: int) -> int:
    """The number of bytes that the header of ``file`` declares beyond its ``size``; 0 when the file is complete."""
    file.seek(0)
    head = file.read(12)
    declared = next((parse(file, size) for magic, parse in _PARSERS if magic.match(head)), None)
    if declared is None or declared - size <= _SLACK_BYTES:
        return 0
    return declared - size


def _riff(file: Source, size: int) -> int | None:
    """WAV and RF64: the end of the ``data`` chunk."""
    at, long_size = 12, None
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        chunk = file.read(8)
        if len(chunk) < 8:
            return None
        name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
        if name == b"ds64":
            long_size = struct.unpack("<Q", file.read(16).ljust(16, b"\0")[8:])[0]
        if name == b"data":
            if length == 0xFFFF_FFFF and long_size:
                length = long_size
            elif length == 0 or length >= _UNKNOWN_FROM:
                return None
            return int(at + 8 + length)
        at += 8 + length + length % 2
    return None


def _wave64(file: Source, size: int) -> int | None:
    file.seek(16)
    return int.from_bytes(file.read(8), "little") or None


def _aiff(file: Source, size: int) -> int | None:
    file.seek(4)
    return 8 + int.from_bytes(file.read(4), "big")


def _caf(file: Source, size: int) -> int | None:
    """Apple's Core Audio Format: the end of the ``data`` chunk, whose length is -1 while the file is being written."""
    at = 8
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        chunk = file.read(12)
        if len(chunk) < 12:
            return None
        length = int.from_bytes(chunk[4:], "big", signed=True)
        if length < 0:
            return None
        at += 12 + length
        if chunk[:4] == b"data":
            return at
    return None


def _au(file: Source, size: int) -> int | None:
    file.seek(4)
    start, length = struct.unpack(">II", file.read(8).ljust(8, b"\0"))
    return None if length in (0, 0xFFFF_FFFF) else start + length


def _sphere(file: Source, size: int) -> int | None:
    """NIST Sphere: samples x channels x bytes a sample, after the header; None for shortened audio."""
    file.seek(0)
    header = file.read(1024)
    if re.search(rb"sample_coding -s\d+ \S*,embedded", header):
        return None
    start = re.match(rb"NIST_1A\n\s*(\d{1,6})\n", header)
    counts = [
        re.search(rb"\n%s -[is]\d* (\d{1,12})\s" % field, header)
        for field in (b"sample_count", b"channel_count", b"sample_n_bytes")
    ]
    if start is None or not all(counts):
        return None
    samples, channels, width = (int(count[1]) for count in counts if count)
    return int(start[1]) + samples * channels * width


def _ogg(file: Source, size: int) -> int | None:
    """The end of the last page that begins in the file."""
    tail_at = max(0, size - _OGG_TAIL_BYTES)
    file.seek(tail_at)
    tail = file.read(_OGG_TAIL_BYTES)
    page = tail.rfind(b"OggS\0")
    if page < 0:
        return None
    if len(tail) < page + 27 or len(tail) < page + 27 + tail[page + 26]:
        return size + _SLACK_BYTES + 1  # truncated in the page's header: how much is missing is unknown
    lacing = tail[page + 27 : page + 27 + tail[page + 26]]
    end = tail_at + page + 27 + len(lacing) + sum(lacing)
    return end if end <= size else max(end, size + _SLACK_BYTES + 1)


def _mp4(file: Source, size: int) -> int | None:
    """The end of the last box. A file truncated before its index (``moov``) does not open at all."""
    at = 0
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        box = file.read(16)
        if len(box) < 8:
            break
        length = int.from_bytes(box[:4], "big")
        if length == 1:
            length = int.from_bytes(box[8:16], "big")
        if length < 8:  # 0: the box extends to the end of the file
            break
        at += length
        if at > size:
            return at
    return None


def _matroska(file: Source, size: int) -> int | None:
    """The end of the Segment element; in a live recording its size is unknown (all ones)."""
    file.seek(0)
    head = file.read(128)
    _, header_size, at = _ebml_element(head, 0)
    element_id, length, start = _ebml_element(head, at + (header_size or 0))
    return start + length if element_id == b"\x18\x53\x80\x67" and length is not None else None


def _ebml_element(head: bytes, at: int) -> tuple[bytes, int | None, int]:
    """An element's four-byte id, its length (None: unknown) and the offset of its content."""
    width = 9 - head[at + 4].bit_length() if len(head) > at + 4 else 9
    if width > 8 or len(head) < at + 4 + width:
        return b"", None, len(head)
    ones = (1 << 7 * width) - 1
    length = int.from_bytes(head[at + 4 : at + 4 + width], "big") & ones
    return head[at : at + 4], None if length == ones else length, at + 4 + width


def _mp3(file: Source, size: int) -> int | None:
    """The end of the stream by the byte count of a Xing or Info tag in the first frame."""
    file.seek(0)
    head = file.read(10)
    frame_at = 0
    if head.startswith(b"ID3") and len(head) == 10:
        frame_at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    file.seek(frame_at)
    frame = file.read(256)
    tag = re.search(rb"Xing|Info", frame, re.DOTALL)
    if tag is None or len(frame) < tag.end() + 12:
        return None
    flags = frame[tag.end() + 3]
    if not flags & 2:  # no count of bytes
        return None
    counted = tag.end() + (8 if flags & 1 else 4)
    length = int.from_bytes(frame[counted : counted + 4], "big")
    return frame_at + length if length else None


_PARSERS: tuple[tuple[re.Pattern[bytes], Callable[[Source, int], int | None]], ...] = (
    (re.compile(rb"(?:RIFF|RF64)....WAVE", re.DOTALL), _riff),
    (re.compile(rb"riff\x2e\x91\xcf\x11"), _wave64),
    (re.compile(rb"FORM....AIF[FC]", re.DOTALL), _aiff),
    (re.compile(rb"caff"), _caf),
    (re.compile(rb"\.snd"), _au),
    (re.compile(rb"NIST_1A\n"), _sphere),
    (re.compile(rb"OggS\0"), _ogg),
    (re.compile(rb"....ftyp", re.DOTALL), _mp4),
    (re.compile(rb"\x1a\x45\xdf\xa3"), _matroska),
    (re.compile(rb"ID3|\xff[\xe0-\xff]"), _mp3),
)
