"""Broken files of every format: each has its answer, and none takes its process down (testing/fuzzing.py)."""

import pytest

from speech.errors import AUDIO_CODES
from testing.fuzzing import broken, fuzz, sources

# Takes some 20 seconds on two cores; ``python -m bench.fuzz`` tries a thousand.
FILES = 200
SEED = 20261122


@pytest.mark.slow
def test_every_broken_file_is_heard_or_refused_with_a_code() -> None:
    answers, failures = fuzz(range(FILES), SEED)
    assert not failures, f"seed {SEED}: {failures}"
    assert answers.total() == FILES
    assert answers["heard"] > FILES / 20, "the damage is too heavy to try the decoders"
    assert len(answers.keys() & AUDIO_CODES) >= 3


def test_a_file_depends_on_seed_and_number_alone() -> None:
    files = sources()
    assert broken(files, 1, 7) == broken(dict(reversed(files.items())), 1, 7)
    assert broken(files, 1, 7) != broken(files, 2, 7)
