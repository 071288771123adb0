"""Ogg pages (RFC 3533): where the links of a chained file begin, and where the last page ends.

A chained file is several Ogg streams one after the other, as ``cat a.ogg b.ogg`` and recorders that restart make it.
Each link has its own codec headers, rate, channels and timestamps, so each is decoded as a file of its own.
"""

import re

from speech.audio.source import Source

# A page is at most 65,307 bytes.
_TAIL_BYTES = 1 << 17
_SCAN_BYTES = 1 << 20
_HEADER_BYTES = 27
# A page that begins a logical stream (header type 0x02), and the identification headers of audio codecs.
_FIRST_PAGE = re.compile(rb"OggS\0[\x02\x03\x06\x07]")
_AUDIO_HEADER = re.compile(rb"\x01vorbis|OpusHead|Speex   |\x7fFLAC|fLaC")
# A longer chain is a damaged file, or made to cost time.
_MAX_LINKS = 10_000


def link_starts(file: Source, size: int) -> list[int]:
    """The offsets in bytes at which the links begin, at least the first.

    Streams that are multiplexed begin with adjacent first pages, which belong to one link.
    """
    starts: list[int] = [0]
    first_pages_end = 0  # end of the adjacent first pages that were found last
    for at, end in _first_pages(file, size):
        if at > first_pages_end and len(starts) < _MAX_LINKS:
            starts.append(at)
        first_pages_end = end
    return starts


def _first_pages(file: Source, size: int) -> "list[tuple[int, int]]":
    """Start and end of every page that begins an audio stream."""
    found: list[tuple[int, int]] = []
    overlap = _HEADER_BYTES + 255 + 8
    for base in range(0, size, _SCAN_BYTES):
        file.seek(base)
        data = file.read(_SCAN_BYTES + overlap)
        for match in _FIRST_PAGE.finditer(data, 0, _SCAN_BYTES + 5):
            at = match.start()
            lacing = _lacing(data, at)
            if lacing is None or at >= _SCAN_BYTES:
                continue
            body = at + _HEADER_BYTES + len(lacing)
            if _AUDIO_HEADER.match(data, body):
                found.append((base + at, base + body + sum(lacing)))
    return found


def declared_end(file: Source, size: int) -> int | None:
    """The offset in bytes of the end of the last page that begins in the file; None without one.

    ``size`` + 1 stands for a page that is truncated in its own header, of unknown length.
    """
    tail_at = max(0, size - _TAIL_BYTES)
    file.seek(tail_at)
    tail = file.read(_TAIL_BYTES)
    page = tail.rfind(b"OggS\0")
    if page < 0:
        return None
    lacing = _lacing(tail, page)
    if lacing is None:
        return size + 1
    return tail_at + page + _HEADER_BYTES + len(lacing) + sum(lacing)


def _lacing(data: bytes, page: int) -> bytes | None:
    """The segment table of a page, None if the data ends before it does."""
    if len(data) < page + _HEADER_BYTES:
        return None
    table = data[page + _HEADER_BYTES : page + _HEADER_BYTES + data[page + 26]]
    return table if len(table) == data[page + 26] else None
