"""How large blocks are."""

import pytest

from pipelines.blocks import blocks_per_engine, listened_bytes, recordings_per_block


@pytest.mark.parametrize(
    ("to_do", "listeners", "size"),
    [
        (1, 4, 1),
        (100, 2, 6),  # eight blocks each
        (1_000, 2, 32),
        (4_000, 2, 62),  # many blocks each: fewer, larger ones
        (1_000_000, 16, 128),
        (10_000_000, 8_000, 39),
    ],
)
def test_every_listener_has_several_blocks_and_a_driver_not_too_many(to_do: int, listeners: int, size: int) -> None:
    assert recordings_per_block(to_do, listeners) == size


def test_tables_are_larger_where_engines_are_many() -> None:
    assert listened_bytes(1) == listened_bytes(8) < listened_bytes(1_000)


@pytest.mark.parametrize(
    ("concurrent_clips", "engines", "blocks"),
    [(1, 1, 4), (64, 1, 4), (167, 1, 6), (1024, 8, 32), (64, 1_000, 4), (1024, 1_000, 8)],
)
def test_an_engine_has_as_many_blocks_as_fill_it(concurrent_clips: int, engines: int, blocks: int) -> None:
    assert blocks_per_engine(concurrent_clips, engines) == blocks
