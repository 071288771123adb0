"""The manifest: what is to be transcribed, one row a recording, from wherever it is.

    calls.jsonl  .ndjson  .json    one JSON object a line              (also .gz)
    calls.csv    .tsv              with a header; an empty cell is no cell (also .gz)
    calls.parquet                  a file
    calls/                         a folder of audio, whatever its depth; or one of manifest files
    s3://bucket/2026/*.wav         a glob, of either

Rows come out raw, as dicts, streaming. A row that asks for something impossible is not judged here:
it fails alone, in its turn (``Recording.from_row``). What would spoil the run is found here, before
anything is transcribed: a line that cannot be read, a table without a column for audio, no rows,
and two rows with one id. That last one is an error even where the rows are the same. The output has
each id once, so one of the two would vanish, and a repeated row is as often a join gone wrong as a
harmless copy; which it is, the message says.

NeMo's names are read as ours (``audio_filepath``, and Canary's ``source_lang``, ``target_lang``,
``taskname``). Relative paths are relative to the manifest's folder.

Memory stays flat but for 8 bytes a row, which is how ids are compared; a folder or a glob costs what
``Storage.list`` costs.
"""

import csv
import gzip
import io
import json
import posixpath
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn, cast
from urllib.parse import urlsplit

import numpy as np

from speech.errors import UsageError
from speech.recording import row_id
from speech.redaction import redact_uri
from storage.filesystem import Storage
from storage.uris import is_glob, parent, resolve

# What a folder or a glob takes for audio: names that recorders and phone systems give to files that
# speech.audio.decoders reads. A manifest may name any file whatever.
AUDIO_SUFFIXES = (
    *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".avi", ".awb", ".caf", ".flac"),
    *(".gsm", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".nist", ".oga"),
    *(".ogg", ".opus", ".rf64", ".snd", ".sph", ".tta", ".voc", ".w64", ".wav", ".wave", ".webm", ".wma", ".wv"),
)
KINDS = ".jsonl .ndjson .json .csv .tsv (each also .gz), .parquet, a folder of audio, or a glob"
_AUDIO_COLUMNS = ("audio", "audio_filepath")
_NEMO_NAMES = {"source_lang": "language", "target_lang": "target_language", "taskname": "task"}
_NEMO_TASKS = {"asr": "transcribe", "ast": "translate", "s2t_translation": "translate"}
# The reference text of a whole call may stand in one CSV cell; Python's own limit is 128 kB.
_MAX_CELL_CHARS = 1 << 27
_PARQUET_ROWS = 1024  # read at a time
_REPEATS_SHOWN = 5

Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row]]  # by line, or by row where there are no lines


def read(uri: str, storage: Storage) -> Iterator[tuple[str, Row]]:
    """The rows of a manifest with their ids, ``audio`` resolved. Its kind, and that it exists, are checked at once.

    Raises:
        UsageError: ``not_found``, ``forbidden``, ``unreadable``; ``bad_manifest`` naming file and line;
            ``duplicate_id``, after the last row.
    """
    files = _files(uri, storage)
    return _checked(uri, files, storage)


def _checked(uri: str, files: list[str], storage: Storage) -> Iterator[tuple[str, Row]]:
    ids = array("q")  # a hash each: equal ids have equal hashes, so what has no repeat here has none at all
    for _, _, row in _rows(uri, files, storage):
        recording_id = row_id(row)
        ids.append(hash(recording_id))
        yield recording_id, row
    if not ids:
        raise UsageError("bad_manifest", f"{redact_uri(uri)} holds no rows: give it one a recording")
    hashes = np.frombuffer(ids, np.int64)
    hashes.sort()  # in place: the array is ours
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    if len(repeated):
        _check_repeated(uri, files, storage, set(repeated.tolist()))


def _check_repeated(uri: str, files: list[str], storage: Storage, suspects: set[int]) -> None:
    """Reads the manifest once more to say where ids are repeated, if it is they and not only their hashes."""
    first: dict[str, tuple[str, Row]] = {}
    repeats: Counter[str] = Counter()
    shown: list[str] = []
    for file, number, row in _rows(uri, files, storage):
        row_name = row_id(row)
        if hash(row_name) not in suspects:
            continue
        place = f"{_place(file)} {number}"
        if row_name not in first:
            first[row_name] = place, row
            continue
        repeats[row_name] += 1
        if len(shown) < _REPEATS_SHOWN:
            other, other_row = first[row_name]
            same = ", the same row" if row == other_row else ""
            shown.append(f"{row_name!r} ({other} and {place}{same})")
    if repeats:
        more = f" and {repeats.total() - len(shown)} more" if repeats.total() > len(shown) else ""
        raise UsageError(
            "duplicate_id",
            f"{len(repeats)} id(s) stand in more than one row: {'; '.join(shown)}{more}. Each id is written once: "
            "take out rows that repeat, and give an 'id' of its own to each that asks for something else",
        )


def _files(uri: str, storage: Storage) -> list[str]:
    """The files that hold the rows, or are the audio."""
    if not (is_glob(uri) and not storage.exists(uri)) and not storage.is_folder(uri):
        storage.check_readable(uri)
        if not _is_audio(uri) and _reader(uri) is None:
            raise UsageError("bad_manifest", f"{redact_uri(uri)} is of no known kind; a manifest is {KINDS}")
        return [uri]
    found = storage.list(uri)
    visible = [file for file in found if not posixpath.basename(file).startswith((".", "_"))]
    # Among audio, a .json or .csv is a note beside a recording, not a manifest.
    files = [file for file in visible if _is_audio(file)] or [file for file in visible if _reader(file)]
    if not found:
        raise UsageError("not_found", f"no file is at {redact_uri(uri)}")
    if not files:
        raise UsageError(
            "bad_manifest",
            f"{redact_uri(uri)}: none of the {len(found)} files there is audio ({' '.join(AUDIO_SUFFIXES)}) "
            "or a manifest",
        )
    return files


def _rows(uri: str, files: list[str], storage: Storage) -> Iterator[tuple[str, int, Row]]:
    """All rows with the file and the number at which they stand."""
    folder = None if files == [uri] else uri
    for file in files:
        if _is_audio(file):
            yield file, 1, {"audio": resolve(file, ".")}
            continue
        reader = _reader(file)
        assert reader is not None  # _files sees to it
        base = folder if folder is not None and not is_glob(folder) else parent(file)
        with storage.map_errors(UsageError, file):
            for number, row in reader(file, storage):
                yield file, number, _in_our_names(row, base)


def _in_our_names(row: Row, folder: str) -> Row:
    for name in _AUDIO_COLUMNS:
        if isinstance(row.get(name), str) and row[name].strip():
            row[name] = resolve(row[name].strip(), folder)
    for theirs, ours in _NEMO_NAMES.items():
        if theirs in row and ours not in row:
            value = row.pop(theirs)
            row[ours] = _NEMO_TASKS.get(value, value) if ours == "task" else value
    return row


def _json_lines(file: str, storage: Storage) -> NumberedRows:
    with _open(file, storage) as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not line:
                continue
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError as error:
                _refuse(file, number, "is not UTF-8; save the file in UTF-8", error)
            except (ValueError, RecursionError) as error:
                _refuse(file, number, f"is not JSON ({error}); write one object a line", error)
            if not isinstance(row, dict):
                _refuse(file, number, 'is not a JSON object; write one a line, like {"audio": "call.wav"}')
            yield number, row


def _separated(file: str, storage: Storage, delimiter: str) -> NumberedRows:
    csv.field_size_limit(_MAX_CELL_CHARS)
    with _open(file, storage) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if header:
                _check_columns(file, header)
            for cells in reader:
                if not cells:  # a blank line
                    continue
                if len(cells) != len(header):
                    _refuse(
                        file, reader.line_num, f"has {len(cells)} cells where the header has {len(header)}; mend it"
                    )
                yield reader.line_num, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
        except UnicodeDecodeError as error:
            _refuse(file, reader.line_num + 1, "or one soon after is not UTF-8; save the file in UTF-8", error)
        except csv.Error as error:
            _refuse(file, reader.line_num, f"is not CSV ({error}); mend its quotes", error)


def _comma_separated(file: str, storage: Storage) -> NumberedRows:
    return _separated(file, storage, ",")


def _tab_separated(file: str, storage: Storage) -> NumberedRows:
    return _separated(file, storage, "\t")


def _parquet(file: str, storage: Storage) -> NumberedRows:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with storage.open(file) as source:
            table = ParquetFile(source)
            _check_columns(file, table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: cell for name, cell in row.items() if cell is not None}
    except pa.ArrowException as error:
        raise UsageError("bad_manifest", f"{redact_uri(file)} is no Parquet that can be read: {error}") from error


_READERS: dict[str, Callable[[str, Storage], NumberedRows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".parquet": _parquet,
}


def _reader(file: str) -> Callable[[str, Storage], NumberedRows] | None:
    suffix, packed = _suffix(file)
    return None if packed and suffix == ".parquet" else _READERS.get(suffix)


def _is_audio(file: str) -> bool:
    suffix, packed = _suffix(file)
    return suffix in AUDIO_SUFFIXES and not packed


def _suffix(file: str) -> tuple[str, bool]:
    """A file's suffix, lower case, and whether it is packed by gzip."""
    path = (urlsplit(file).path if file.startswith(("http://", "https://")) else file).lower()
    packed = path.endswith(".gz")
    return posixpath.splitext(path.removesuffix(".gz"))[1], packed


def _open(file: str, storage: Storage) -> BinaryIO:
    raw = storage.open(file)
    return cast(BinaryIO, gzip.open(raw)) if _suffix(file)[1] else raw


def _check_columns(file: str, columns: list[str]) -> None:
    if not set(_AUDIO_COLUMNS) & set(columns):
        has = ", ".join(map(repr, columns[:20]))
        raise UsageError(
            "bad_manifest",
            f"{redact_uri(file)} has no column 'audio' (nor 'audio_filepath') but {has}: "
            "name the column of URIs or paths so, and separate columns as the file's suffix says",
        )


def _place(file: str) -> str:
    return f"{redact_uri(file)} {'row' if file.endswith('.parquet') else 'line'}"


def _refuse(file: str, number: int, what: str, cause: Exception | None = None) -> NoReturn:
    raise UsageError("bad_manifest", f"{_place(file)} {number} {what}") from cause
