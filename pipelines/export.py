"""The transcripts of an output as files that people and players read, one a recording."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pipelines.output import Output
from speech.formats import TranscriptFormat, render_transcript
from speech.transcript import Transcript
from storage.filesystem import Storage
from storage.uris import join

SUFFIXES: dict[TranscriptFormat, str] = {
    "text": "txt",
    "srt": "srt",
    "vtt": "vtt",
    "json": "json",
    "verbose_json": "json",
}


def export(output_uri: str, format: TranscriptFormat, to: str, storage_options: Mapping[str, Any]) -> int:
    """Writes each transcript into the folder ``to``, named after its recording; failed ones have none.

    Returns:
        How many were written.

    Raises:
        UsageError: ``not_found``: no run has begun there; or a place of storage is wrong.
    """
    storage = Storage(storage_options)
    output = Output(output_uri, storage)
    output.require_job()
    storage.check_writable(to)
    count = 0
    for batch in output.batches("ok"):
        for row in batch.to_pylist():
            name = f"{quote(row['recording_id'], safe=' ')}.{SUFFIXES[format]}"  # an id may hold a slash
            storage.write_bytes(join(to, name), render_transcript(Transcript.from_row(row), format).encode())
            count += 1
    return count
