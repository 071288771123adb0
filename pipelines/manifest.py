"""Reads a manifest: the recordings to transcribe, one a row.

    calls.jsonl  .ndjson  .json    one JSON object a line              (also .gz)
    calls.csv    .tsv              with a header; an empty cell is absent   (also .gz)
    calls.parquet                  a file
    calls/                         a folder or prefix of audio, searched recursively; or of manifest files
    s3://bucket/2026/*.wav         a glob, of either

Rows are streamed as unvalidated dicts. ``Recording.from_row`` validates each row later, so that an
invalid row fails alone. Errors that affect the whole run are raised here, before anything is
transcribed: a line that cannot be parsed, a column that is there twice, a table without an audio
column, no rows, and two rows with the same id. Duplicate ids are an error even where the rows are
identical: the output holds each id once, so one of the two would be lost, and a repeated row may be a
wrong join as well as a harmless copy; the message says which rows are identical. Rows without any
value are skipped.

NeMo's column names are accepted (``audio_filepath``, and Canary's ``source_lang``, ``target_lang``,
``taskname``). Relative paths are relative to the manifest's folder.

Memory: 8 bytes a row, the hashes that detect duplicate ids; and, for a folder or a glob, the listing
(see ``Storage.list``).
"""

import csv
import gzip
import io
import posixpath
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, cast
from urllib.parse import urlsplit

import numpy as np

from speech.errors import UsageError
from speech.json_objects import RepeatedNameError, parse_json
from speech.raw_format import RAW_SUFFIXES
from speech.recording import escape_surrogates, row_id
from speech.redaction import redact_uri
from storage.filesystem import Storage
from storage.uris import absolute, is_glob, parent, resolve

if TYPE_CHECKING:
    import pyarrow as pa

# The files of a folder or a glob that are taken for audio: suffixes of recorders and telephone systems for
# formats that speech.audio.decoders reads. A manifest may name files with any suffix.
AUDIO_SUFFIXES = (
    *(".3g2", ".3gp", ".aac", ".ac3", ".adts", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".asf", ".au", ".avi"),
    *(".awb", ".caf", ".dts", ".eac3", ".ec3", ".f4v", ".flac", ".flv", ".m2ts", ".m4a", ".m4b", ".m4r", ".m4v"),
    *(".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpa", ".mpc", ".mpeg", ".mpg", ".mpga", ".mts", ".nist"),
    *(".oga", ".ogg", ".ogv", ".opus", ".rf64", ".snd", ".sph", ".spx", ".ts", ".tta", ".voc", ".w64", ".wav"),
    *(".wave", ".webm", ".wma", ".wmv", ".wv"),
    *(f".{name}" for name in sorted(RAW_SUFFIXES)),
)
KINDS = ".jsonl .ndjson .json .csv .tsv (each also .gz), .parquet; a folder or glob of these, or of audio"
_AUDIO_COLUMNS = ("audio", "audio_filepath")
_NEMO_NAMES = {"source_lang": "language", "target_lang": "target_language", "taskname": "task"}
_NEMO_TASKS = {"asr": "transcribe", "ast": "translate", "s2t_translation": "translate"}
# One CSV cell may hold the reference text of a whole call; the csv module's default limit is 128 kB.
_MAX_CELL_CHARS = 1 << 27
# Far below the limits of recursion in pydantic (255) and in Python's json (about 1000, less the caller's frames).
_MAX_NESTING = 100
# Bytes that are not UTF-8 become lone surrogates, for which Recording.from_row rejects that row alone.
_NOT_UTF8 = "surrogateescape"
_PARQUET_ROWS = 1024  # read at a time
_REPEATS_SHOWN = 5

Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row]]  # by line, or by row where there are no lines
Span = tuple[int, int] | None
Reader = Callable[[str, Storage, Span], NumberedRows]


class Part(NamedTuple):
    """A part of a manifest's rows: a file, or a stretch of one."""

    file: str
    span: Span = None  # of JSON lines: bytes, from and to; of Parquet: row groups


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest with their ids; iterating reads them from storage.

    Raises, while iterating:
        UsageError: as of ``read``.
    """

    uri: str
    storage: Storage
    files: list[str]  # manifest files, or the recordings themselves
    skipped: list[str]  # files of the folder or glob that are neither
    listed: Mapping[str, int] = field(default_factory=dict)  # sizes in bytes of a folder's files, or a glob's

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        hashes = array("q")
        for _, _, row in _rows(self.uri, self.files, self.storage):
            recording_id = row_id(row)
            hashes.append(id_hash(recording_id))
            yield recording_id, row
        self.check_ids(np.frombuffer(hashes, np.int64) if hashes else np.empty(0, np.int64))

    @property
    def is_audio(self) -> bool:
        """Whether it is recordings, and not files that name them."""
        return _is_audio(self.files[0])

    def sizes(self) -> dict[str, int]:
        """The sizes of its files, in bytes."""
        return {file: self.listed[file] if file in self.listed else self.storage.size(file) for file in self.files}

    def part(self, part: Part) -> Iterator[tuple[str, Row]]:
        """The rows of one part, of which the ids are not checked."""
        for _, _, row in _rows(self.uri, [part.file], self.storage, part.span):
            yield row_id(row), row

    def check_ids(self, hashes: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
        """Returns if there are rows, and none has the id of another.

        Args:
            hashes: the ``id_hash`` of every row. Equal ids have equal hashes.

        Raises:
            UsageError: ``bad_manifest`` or ``duplicate_id``.
        """
        if not len(hashes):
            raise UsageError("bad_manifest", f"{redact_uri(self.uri)} holds no rows: write one row a recording")
        ordered = np.sort(hashes)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            _check_repeated(self.uri, self.files, self.storage, set(repeated.tolist()))


def id_hash(recording_id: str) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(blake2b(recording_id.encode(), digest_size=8).digest(), "little", signed=True)


def _none(uri: str) -> bool:
    return False


def read(uri: str, storage: Storage, apart_from: Callable[[str], bool] = _none) -> Manifest:
    """The rows of a manifest with their ids, ``audio`` resolved. Its kind, and that it exists, are checked at once.

    Args:
        uri: of a file, a folder or a glob.
        storage: reads it.
        apart_from: which files of a folder are not there: ``pipelines.output.Output.has``, of an output within it.

    Raises:
        UsageError: ``not_found``, ``forbidden``, ``unreadable``; ``bad_manifest`` naming file and line;
            ``duplicate_id``, after the last row.
    """
    if not (is_glob(uri) and not storage.exists(uri)) and not storage.is_folder(uri):
        storage.check_readable(uri)
        if not _is_audio(uri) and _reader(uri) is None:
            raise UsageError("bad_manifest", f"{redact_uri(uri)} has an unknown suffix; a manifest is {KINDS}")
        return Manifest(uri, storage, [uri], [])
    listed = {file: size for file, size in storage.sizes(uri).items() if not apart_from(file)}
    return Manifest(uri, storage, *_files(uri, listed), listed)


def _check_repeated(uri: str, files: list[str], storage: Storage, suspects: set[int]) -> None:
    """Reads the manifest again and raises ``duplicate_id`` with the lines, unless only the hashes are equal."""
    first: dict[str, tuple[str, Row]] = {}
    repeats: Counter[str] = Counter()
    shown: list[str] = []
    for file, number, row in _rows(uri, files, storage):
        recording_id = row_id(row)
        if id_hash(recording_id) not in suspects:
            continue
        place = f"{_place(file)} {number}"
        if recording_id not in first:
            first[recording_id] = place, row
            continue
        repeats[recording_id] += 1
        if len(shown) < _REPEATS_SHOWN:
            other, other_row = first[recording_id]
            same = ", the same row" if row == other_row else ""
            shown.append(f"{recording_id!r} ({other} and {place}{same})")
    if repeats:
        more = f" and {repeats.total() - len(shown)} more" if repeats.total() > len(shown) else ""
        raise UsageError(
            "duplicate_id",
            f"{len(repeats)} id(s) are in more than one row: {'; '.join(shown)}{more}. The output holds each id once: "
            "remove repeated rows, and give a different 'id' to each row that differs",
        )


def _files(uri: str, found: Collection[str]) -> tuple[list[str], list[str]]:
    """Of the files that a folder or a glob has: the manifest files or the audio files; and the others."""
    audio = [file for file in found if _is_audio(file) and not posixpath.basename(file).startswith(".")]
    visible = [file for file in found if not posixpath.basename(file).startswith((".", "_"))]
    manifests = [file for file in visible if _reader(file)]
    # Beside audio files, a .json is taken for notes on a recording.
    if audio and (tables := [file for file in manifests if _suffix(file)[0] != ".json"]):
        raise UsageError(
            "bad_manifest",
            f"{redact_uri(uri)} holds {len(audio)} audio files and {len(tables)} manifests ({redact_uri(tables[0])}): "
            "name one of them, or give a glob that matches one kind, as calls/*.wav, calls/**/*.wav or calls/*.jsonl",
        )
    files = audio or manifests
    if not found:
        raise UsageError("not_found", f"no file is at {redact_uri(uri)}")
    if not files:
        raise UsageError(
            "bad_manifest",
            f"{redact_uri(uri)}: none of the {len(found)} files there is audio ({' '.join(AUDIO_SUFFIXES)}) "
            "or a manifest",
        )
    taken = set(files)
    return files, [file for file in visible if file not in taken]


def _rows(uri: str, files: list[str], storage: Storage, span: Span = None) -> Iterator[tuple[str, int, Row]]:
    """All rows as (file, line or row number, row). Numbers count from the beginning of ``span``."""
    for file in files:
        folder = None if file == uri else uri
        if _is_audio(file):
            yield file, 1, {"audio": resolve(file, ".")}
            continue
        reader = _reader(file)
        assert reader is not None  # _files returns only such files
        base = absolute(folder if folder is not None and not is_glob(folder) else parent(file))
        with storage.map_errors(UsageError, file):
            for number, row in reader(file, storage, span):
                yield file, number, _normalized(row, base)


def _normalized(row: Row, folder: str) -> Row:
    """The row with ``audio`` resolved against ``folder`` and NeMo's column names replaced."""
    for name in _AUDIO_COLUMNS:
        if isinstance(row.get(name), str) and row[name].strip():
            row[name] = resolve(row[name].strip(), folder)
    for nemo_name, name in _NEMO_NAMES.items():
        if nemo_name in row and name not in row:
            value = row.pop(nemo_name)
            row[name] = _NEMO_TASKS.get(value, value) if name == "task" else value
    return row


def _json_lines(file: str, storage: Storage, span: Span) -> NumberedRows:
    with _open(file, storage) as opened:
        for number, line in enumerate(_lines_within(opened, span) if span else opened, 1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not line:
                continue
            try:
                row = parse_json(line.decode(errors=_NOT_UTF8))
            except RepeatedNameError as error:
                _raise_bad_line(file, number, f"is ambiguous: {error}; keep one of them", error)
            except (ValueError, RecursionError) as error:
                _raise_bad_line(file, number, f"is not JSON ({error}); write one object a line", error)
            if not isinstance(row, dict):
                _raise_bad_line(file, number, 'is not a JSON object; write one a line, like {"audio": "call.wav"}')
            if line.count(b"[") + line.count(b"{") > _MAX_NESTING and _is_nested(row, _MAX_NESTING):
                _raise_bad_line(file, number, f"is nested more than {_MAX_NESTING} levels deep")
            if row:
                yield number, row


def _lines_within(file: BinaryIO, span: tuple[int, int]) -> Iterator[bytes]:
    """The lines that begin within a range of bytes."""
    at, end = span
    if at:
        file.seek(at - 1)
        at += len(file.readline()) - 1  # the rest of the line that begins before; a line's end, if one begins here
    while at < end and (line := file.readline()):
        at += len(line)
        yield line


def _is_nested(row: Row, levels: int) -> bool:
    """Whether lists and objects are nested more than ``levels`` deep."""
    values: list[Any] = [row]
    for _ in range(levels + 1):
        values = [
            item
            for value in values
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(values)


def _separated(file: str, storage: Storage, delimiter: str) -> NumberedRows:
    csv.field_size_limit(_MAX_CELL_CHARS)
    with _open(file, storage) as raw, io.TextIOWrapper(raw, "utf-8-sig", _NOT_UTF8, newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if header:
                _check_columns(file, header)
            for cells in reader:
                if not any(cell.strip() for cell in cells):  # a blank line, or a spreadsheet's empty row
                    continue
                if len(cells) != len(header):
                    _raise_bad_line(file, reader.line_num, f"has {len(cells)} cells where the header has {len(header)}")
                yield reader.line_num, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
        except csv.Error as error:
            _raise_bad_line(file, reader.line_num, f"is not CSV ({error}); check its quotes", error)


def _comma_separated(file: str, storage: Storage, span: Span) -> NumberedRows:
    return _separated(file, storage, ",")


def _tab_separated(file: str, storage: Storage, span: Span) -> NumberedRows:
    return _separated(file, storage, "\t")


def _parquet(file: str, storage: Storage, span: Span) -> NumberedRows:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with storage.open(file) as source:
            table = ParquetFile(source)
            _check_columns(file, table.schema_arrow.names)
            number = 0
            groups = range(*span) if span else None
            for batch in table.iter_batches(_PARQUET_ROWS, row_groups=groups):
                for row in _batch_rows(batch):
                    number += 1
                    if cells := {name: cell for name, cell in row.items() if cell is not None}:
                        yield number, cells
    except pa.ArrowException as error:
        raise UsageError("bad_manifest", f"{redact_uri(file)} is not readable as Parquet: {error}") from error


def _batch_rows(batch: "pa.RecordBatch") -> list[Row]:
    """The batch's rows. Parquet's readers do not check that text is UTF-8; pyarrow's conversion to str does."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = [_cells(column) for column in batch.columns]
        return [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _cells(column: "pa.Array") -> list[Any]:
    import pyarrow as pa

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.to_pylist()
    return [cell and cell.decode(errors=_NOT_UTF8) for cell in column.cast(pa.large_binary()).to_pylist()]


_READERS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".parquet": _parquet,
}


def _reader(file: str) -> "Reader | None":
    suffix, gzipped = _suffix(file)
    return None if gzipped and suffix == ".parquet" else _READERS.get(suffix)


def is_lines(file: str) -> bool:
    """Whether a manifest's file is JSON lines, not compressed."""
    return _reader(file) is _json_lines and not _suffix(file)[1]


def is_parquet(file: str) -> bool:
    return _reader(file) is _parquet


def _is_audio(file: str) -> bool:
    suffix, gzipped = _suffix(file)
    return suffix in AUDIO_SUFFIXES and not gzipped


def _suffix(file: str) -> tuple[str, bool]:
    """A file's suffix in lower case without ``.gz``, and whether it is compressed with gzip."""
    path = (urlsplit(file).path if file.startswith(("http://", "https://")) else file).lower()
    gzipped = path.endswith(".gz")
    return posixpath.splitext(path.removesuffix(".gz"))[1], gzipped


def _open(file: str, storage: Storage) -> BinaryIO:
    raw = storage.open(file)
    return cast(BinaryIO, gzip.open(raw)) if _suffix(file)[1] else raw


def _check_columns(file: str, columns: list[str]) -> None:
    if any(name != escape_surrogates(name) for name in columns):
        raise UsageError("bad_manifest", f"{redact_uri(file)}: the column names are not UTF-8; save the file in UTF-8")
    if repeated := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise UsageError("bad_manifest", f"{redact_uri(file)} has the column {repeated[0]!r} more than once")
    if not set(_AUDIO_COLUMNS) & set(columns):
        has = ", ".join(repr(redact_uri(name)) for name in columns[:20])  # without a header, these are URIs
        raise UsageError(
            "bad_manifest",
            f"{redact_uri(file)} has no column 'audio' (nor 'audio_filepath') but {has}: "
            "give the column of URIs or paths that name, and use the delimiter of the file's suffix",
        )


def _place(file: str) -> str:
    return f"{redact_uri(file)} {'row' if file.endswith('.parquet') else 'line'}"


def _raise_bad_line(file: str, number: int, problem: str, cause: Exception | None = None) -> NoReturn:
    raise UsageError("bad_manifest", f"{_place(file)} {number} {problem}") from cause
