"""How large blocks are."""

import pytest

from pipelines.blocks import listened_bytes, recordings_per_block


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
