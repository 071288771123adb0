"""A run stops where most recordings fail for a reason that the next will have too."""

from collections.abc import Sequence

import pyarrow as pa
import pytest

from pipelines.breaker import MIN_RECORDINGS, WINDOW, CircuitBreaker
from pipelines.rows import RECEIPT
from speech.errors import RayscribeError

OK, STORAGE, OWN_FAULT, REFUSED, BUG = None, "forbidden", "truncated", "engine_refused", "internal"


def receipts(codes: Sequence[str | None]) -> pa.Table:
    """Of recordings that failed with these codes; none for those that did not."""
    rows = [{"code": code, "storage_failed": code == STORAGE} for code in codes]
    return pa.Table.from_pylist(rows, schema=RECEIPT)


@pytest.mark.parametrize(
    ("failed", "code"),
    [([STORAGE], "storage_failing"), ([REFUSED], "engine_failing"), ([REFUSED, BUG, STORAGE], "engine_failing")],
)
def test_it_names_what_fails(failed: list[str], code: str) -> None:
    breaker = CircuitBreaker(0.5)
    breaker.add(receipts([OK] * (MIN_RECORDINGS // 2)))
    rows = (failed * MIN_RECORDINGS)[: MIN_RECORDINGS // 2]
    breaker.add(receipts(rows))  # a half is not more than a half
    with pytest.raises(RayscribeError, match="max-failed-share") as stopped:
        breaker.add(receipts([failed[0]]))
    assert stopped.value.code == code


def test_few_recordings_and_their_own_faults_stop_nothing() -> None:
    breaker = CircuitBreaker(0.5)
    breaker.add(receipts([REFUSED] * (MIN_RECORDINGS - 1)))
    breaker.add(receipts([OWN_FAULT] * MIN_RECORDINGS * 3))


def test_the_share_is_that_of_the_last_recordings() -> None:
    breaker = CircuitBreaker(0.5)
    breaker.add(receipts([OK] * 100 * WINDOW))
    with pytest.raises(RayscribeError):
        breaker.add(receipts([REFUSED] * (WINDOW // 2 + 1)))


def test_a_share_of_one_never_stops() -> None:
    CircuitBreaker(1.0).add(receipts([STORAGE] * WINDOW))
