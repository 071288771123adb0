"""Exports an output's transcripts as text, subtitle or JSON files, one a recording."""

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
    """Writes one file per transcript into the folder ``to``, named by recording id. Failed recordings have none.

    Returns:
        The number of files written.

    Raises:
        UsageError: ``not_found`` if ``output_uri`` holds no run; or a code of ``Storage``.
    """
    storage = Storage(storage_options)
    output = Output(output_uri, storage)
    output.require_job()
    storage.check_writable(to)
    count = 0
    for batch in output.batches("ok"):
        for row in batch.to_pylist():
            name = f"{quote(row['recording_id'], safe=' ')}.{SUFFIXES[format]}"  # an id may contain a slash
            storage.write_bytes(join(to, name), render_transcript(Transcript.from_row(row), format).encode())
            count += 1
    return count
