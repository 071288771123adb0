"""Exports an output's transcripts as text, subtitle or JSON files, one a recording."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pipelines.output import Output
from speech.formats import TranscriptFormat, render_transcript
from speech.transcript import Transcript
from storage.filesystem import Storage
from storage.uris import absolute, join

SUFFIXES: dict[TranscriptFormat, str] = {
    "text": "txt",
    "srt": "srt",
    "vtt": "vtt",
    "json": "json",
    "verbose_json": "json",
}
# File systems allow 255 bytes (ext4, XFS, NTFS: 255 characters); temporary files have a suffix besides.
MAX_NAME_CHARS = 200
# Files written at a time, which hides the latency of a store and of a disk.
WRITERS = 32
_HASH_CHARS = 16


@dataclass
class Exported:
    """What was written."""

    files: int = 0
    shortened: int = 0  # of them, files whose names do not contain the whole id


def export(output_uri: str, format: TranscriptFormat, to: str, storage_options: Mapping[str, Any]) -> Exported:
    """Writes one file per transcript into the folder ``to``, named by recording id. Failed recordings have none.

    Returns:
        How many files were written.

    Raises:
        UsageError: ``not_found`` if ``output_uri`` holds no run; or a code of ``Storage``.
    """
    storage = Storage(storage_options)
    output = Output(output_uri, storage)
    output.require_job()
    to = absolute(to)  # in a file:// URI the escapes of file_name would be read as what they stand for
    storage.check_writable(to)

    def write(row: Mapping[str, Any]) -> bool:
        """Writes a transcript; returns whether its file's name has the whole id."""
        name = file_name(row["recording_id"])
        text = render_transcript(Transcript.from_row(row), format)
        storage.write_bytes(join(to, f"{name}.{SUFFIXES[format]}"), text.encode())
        return name == _quoted(row["recording_id"])

    exported = Exported()
    with ThreadPoolExecutor(WRITERS) as pool:
        for batch in output.batches("ok"):
            for whole in pool.map(write, batch.to_pylist()):
                exported.files += 1
                exported.shortened += not whole
    return exported


def file_name(recording_id: str) -> str:
    """The id as a file name: percent-encoded, as it may contain a slash.

    One that is too long is cut, and ends with a hyphen and the first 16 hex digits of the id's SHA-256.
    """
    name = _quoted(recording_id)
    if len(name) <= MAX_NAME_CHARS:
        return name
    digest = hashlib.sha256(recording_id.encode()).hexdigest()[:_HASH_CHARS]
    return f"{name[: MAX_NAME_CHARS - _HASH_CHARS - 1]}-{digest}"


def _quoted(recording_id: str) -> str:
    return quote(recording_id, safe=" ")
