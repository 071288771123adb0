"""Divides a large manifest into parts that can be read at the same time.

JSON lines      ranges of bytes; a line belongs to the part in which it begins
Parquet         row groups
CSV, gzip       whole files: quotes may hold line ends, and gzip has no entry points
"""

from collections.abc import Iterator

from pipelines.manifest import Manifest, Part, is_lines, is_parquet
from storage.filesystem import Storage
from storage.uris import WEB, protocol_of

# Below it one process reads a manifest as soon as workers would have started.
LARGE_BYTES = 32 << 20
PART_BYTES = 4 << 20


def parts_of(manifest: Manifest) -> list[list[Part]]:
    """Parts of about PART_BYTES together, for a task each; empty if the manifest is small or cannot be divided.

    Raises:
        UsageError: as of ``Storage.open``; ``bad_manifest`` for a file that is not Parquet.
    """
    if manifest.is_audio or protocol_of(manifest.uri) in WEB:  # servers may have no ranges
        return []
    sizes = manifest.sizes()
    if sum(sizes.values()) < LARGE_BYTES:
        return []
    tasks: list[list[Part]] = []
    filled = PART_BYTES
    for file, size in sizes.items():
        for part, part_size in _parts(file, size, manifest.storage):
            if filled + part_size > PART_BYTES:
                tasks.append([])
                filled = 0
            tasks[-1].append(part)
            filled += part_size
    return tasks if len(tasks) > 1 else []


def _parts(file: str, size: int, storage: Storage) -> Iterator[tuple[Part, int]]:
    """The parts of a file, each with its size in bytes."""
    if size > PART_BYTES and is_lines(file):
        for start in range(0, size, PART_BYTES):
            yield Part(file, (start, start + PART_BYTES)), min(PART_BYTES, size - start)
    elif size > PART_BYTES and is_parquet(file):
        groups = _row_groups(file, storage)
        for group in range(groups):
            yield Part(file, (group, group + 1)), size // groups
    else:
        yield Part(file), size


def _row_groups(file: str, storage: Storage) -> int:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with storage.open(file) as source:
        try:
            return int(ParquetFile(source).num_row_groups)
        except pa.ArrowException:
            return 1  # the reader says what is wrong with it
