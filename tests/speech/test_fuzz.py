"""Damaged files of every format: each has an allowed outcome, and none ends its process (testing/fuzzing.py)."""

import pytest

from speech.errors import AUDIO_CODES
from testing.fuzzing import damaged_file, fuzz, intact_files

# Takes some 20 seconds on two cores; ``python -m bench.fuzz`` runs a thousand.
FILES = 200
SEED = 20261122


@pytest.mark.slow
def test_every_damaged_file_is_decoded_or_refused_with_a_code() -> None:
    outcomes, failures = fuzz(range(FILES), SEED)
    assert not failures, f"seed {SEED}: {failures}"
    assert outcomes.total() == FILES
    assert outcomes["decoded"] > FILES / 20, "the damage is too heavy to exercise the decoders"
    assert len(outcomes.keys() & AUDIO_CODES) >= 3


@pytest.mark.slow
def test_a_file_depends_on_seed_and_number_only() -> None:
    files = intact_files()
    assert damaged_file(files, 1, 7) == damaged_file(dict(reversed(files.items())), 1, 7)
    assert damaged_file(files, 1, 7) != damaged_file(files, 2, 7)
