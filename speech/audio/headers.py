"""The size in bytes that a file's header declares, one function a container; ``containers`` says when it counts.

Each takes a file and its size and returns the offset in bytes at which the audio data should end, None if the header
declares none. A length of zero or near the maximum of its field is what a writer to a pipe leaves in the header; it
counts as unknown.
"""

import re
import struct

from speech.audio.source import Source

# ffmpeg writes 0xFFFFFFFF, sox and arecord 0x7FFF… or 0x8000…, when the length is unknown; sox's AIFF 0x7F000000.
_UNKNOWN_FROM = 0x7FFF_0000
_AIFF_UNKNOWN_FROM = 0x7F00_0000
_UNKNOWN_FROM_64 = 1 << 62
_MAX_CHUNKS = 1000
_SCAN_BYTES = 1 << 20
_WAV = re.compile(rb"RIFF....WAVE", re.DOTALL)
_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_CHUNK_NAME = re.compile(rb"[A-Za-z0-9_ ]{4}")
# Fewer bytes behind the declared data are padding.
_MIN_REST_BYTES = 4096
# MP4 boxes without which audio is missing; other boxes and bytes that are not a box may be incomplete.
_MP4_AUDIO_BOXES = frozenset({b"mdat", b"moov", b"moof"})
ID3V1_BYTES = 128
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def riff(file: Source, size: int) -> int | None:
    """WAV, RF64 and BW64: the end of the ``data`` chunk."""
    found = _riff_data(file)
    return None if found is None or found[1] is None else found[0] + found[1]


def _riff_data(file: Source) -> tuple[int, int | None] | None:
    """Offset and size in bytes of what is in the ``data`` chunk, the size None if unknown; None without the chunk."""
    file.seek(0)
    order = ">" if file.read(4) == b"RIFX" else "<"
    at, long_size = 12, 0
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        chunk = file.read(8)
        if len(chunk) < 8:
            return None
        name, length = chunk[:4], struct.unpack(f"{order}I", chunk[4:])[0]
        if name == b"ds64":
            long_size = struct.unpack("<Q", file.read(16).ljust(16, b"\0")[8:])[0]
        if name == b"data":
            if length == 0xFFFF_FFFF and 0 < long_size < _UNKNOWN_FROM_64:
                return at + 8, long_size
            return at + 8, None if length == 0 or length >= _UNKNOWN_FROM else length
        at += 8 + length + length % 2
    return None


def riff_data_size(file: Source, size: int) -> dict[int, bytes]:
    """The size field of a ``data`` chunk behind which samples go on, set to the bytes there are, by its offset.

    A recorder that crashed leaves the size that it wrote last. What follows a true end is nothing or a chunk.
    """
    start, length = _riff_data(file) or (0, None)
    if length is None or start + length + _MIN_REST_BYTES > size:
        return {}
    file.seek(0)
    order = ">" if file.read(4) == b"RIFX" else "<"
    if any(_is_chunk(file, start + length + pad, size, order) for pad in (0, length % 2)):
        return {}
    return {start - 4: struct.pack(f"{order}I", min(size - start, 0xFFFF_FFFE))}


def _is_chunk(file: Source, at: int, size: int, order: str) -> bool:
    """Whether a chunk with a name begins there, and ends within the file. G.711 of speech often looks like a name."""
    file.seek(at)
    chunk = file.read(8)
    return bool(
        _CHUNK_NAME.fullmatch(chunk[:4])
        and len(chunk) == 8
        and at + 8 + int(struct.unpack(f"{order}I", chunk[4:])[0]) <= size
    )


def riff_links(file: Source, size: int) -> list[int]:
    """The offsets of WAV files that are one behind the other, as ``cat`` makes them."""
    starts, at = [0], 0
    while len(starts) < _MAX_CHUNKS:
        file.seek(at + 4)
        length = int.from_bytes(file.read(4), "little")
        at += 8 + length + length % 2
        file.seek(at)
        if at >= size or not _WAV.match(file.read(12)):
            break
        starts.append(at)
    return starts


def flac_links(file: Source, size: int) -> list[int]:
    """The offsets of FLAC files that are one behind the other: of their STREAMINFO blocks."""
    starts: list[int] = []
    for base in range(0, size, _SCAN_BYTES):
        file.seek(base)
        data = file.read(_SCAN_BYTES + 7)
        starts += [base + match.start() for match in _FLAC.finditer(data)]
    return starts[:_MAX_CHUNKS] or [0]


def avi(file: Source, size: int) -> int | None:
    """The end of the first RIFF chunk."""
    file.seek(4)
    length = int.from_bytes(file.read(4), "little")
    return None if length == 0 or length >= _UNKNOWN_FROM else 8 + length


def wave64(file: Source, size: int) -> int | None:
    """Sony Wave64: the size in the ``riff`` header."""
    file.seek(16)
    length = int.from_bytes(file.read(8), "little")
    return None if length == 0 or length >= _UNKNOWN_FROM_64 else length


def wave64_data_size(file: Source, size: int) -> dict[int, bytes]:
    """The size field of a Wave64 ``data`` chunk of unknown size, set to the bytes there are, by its offset.

    Neither decoder opens such a file: libsndfile looks for a chunk behind the data, FFmpeg refuses the size.
    """
    at = 40  # behind the riff and wave GUIDs
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        chunk = file.read(24)
        if len(chunk) < 24:
            return {}
        length = int.from_bytes(chunk[16:], "little")
        if chunk[:4] == b"data":
            return {at + 16: struct.pack("<Q", size - at)} if length <= 24 or length >= _UNKNOWN_FROM_64 else {}
        at += max(24, -(-length // 8) * 8)
    return {}


def aiff(file: Source, size: int) -> int | None:
    """AIFF and AIFF-C: the end of the FORM chunk."""
    file.seek(4)
    length = int.from_bytes(file.read(4), "big")
    return None if length == 0 or length >= _AIFF_UNKNOWN_FROM else 8 + length


def caf(file: Source, size: int) -> int | None:
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


def au(file: Source, size: int) -> int | None:
    """Sun's AU: the end of the data."""
    file.seek(4)
    start, length = struct.unpack(">II", file.read(8).ljust(8, b"\0"))
    return None if length == 0 or length >= _UNKNOWN_FROM else start + length


def sphere(file: Source, size: int) -> int | None:
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
    return int(start[1]) + samples * channels * width if samples else None


def mp4(file: Source, size: int) -> int | None:
    """The end of the first box with audio or its index that is longer than the file, else the end of the last box.

    A file truncated before its index (``moov``) does not open at all.
    """
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
            return None
        if at + length > size:
            return at + length if box[4:8] in _MP4_AUDIO_BOXES else size
        at += length
    return at


def matroska(file: Source, size: int) -> int | None:
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


def asf(file: Source, size: int) -> int | None:
    """WMA: the file size of the File Properties object, unless it is flagged as a broadcast."""
    file.seek(0)
    head = file.read(1 << 16)
    at = head.find(_ASF_FILE_PROPERTIES)
    if at < 0 or len(head) < at + 92 or head[at + 88] & 1:
        return None
    return int.from_bytes(head[at + 40 : at + 48], "little") or None


def mpeg_audio(file: Source, size: int) -> int | None:
    """MP3: the end of the stream by the byte count of a Xing or Info tag in the first frame."""
    frame_at = id3v2_end(file)
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


def id3v2_end(file: Source) -> int:
    """The offset in bytes behind the ID3v2 tag (id3.org, 2.4, section 3.1) that the file begins with, 0 without one."""
    file.seek(0)
    head = file.read(10)
    if len(head) < 10 or not head.startswith(b"ID3"):
        return 0
    length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return 10 + length + (10 if head[5] & 0x10 else 0)
