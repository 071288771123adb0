"""Clips that come one by one are encoded together, and each caller gets its own."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from speech.engines.base import ClipRequest
from speech.engines.batching import Batching
from speech.errors import EngineDied
from speech.recording import Options


class FakeEncoder:
    """Returns the length of a clip for the clip; at most four clips a pass."""

    def __init__(self) -> None:
        self.passes_made: list[list[int]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.error: Exception | None = None

    def check_length(self, samples: int) -> None:
        if samples == 0:
            raise ValueError("too short")

    def passes(self, samples: Sequence[int]) -> Iterator[slice]:
        for start in range(0, len(samples), 4):
            yield slice(start, min(start + 4, len(samples)))

    def encode(self, clips: Sequence[np.ndarray]) -> list[int]:
        assert self.go_on.wait(10)
        if self.error:
            raise self.error
        self.passes_made.append([len(clip) for clip in clips])
        if any(len(clip) == 13 for clip in clips):
            raise RuntimeError("out of memory")
        return [len(clip) for clip in clips]


def clip_of(samples: int, recording_id: str = "a") -> ClipRequest:
    return ClipRequest(np.zeros(samples, np.int16), Options(), id=f"{recording_id}/{samples}")


def encode_all(fake: FakeEncoder, lengths: Sequence[int]) -> list[Any]:
    async def gather() -> list[Any]:
        batching = Batching(fake)
        calls = (batching.encode(clip_of(length)) for length in lengths)
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(gather())


def test_each_caller_gets_its_own_clip() -> None:
    fake = FakeEncoder()
    assert encode_all(fake, range(1, 11)) == list(range(1, 11))
    assert fake.passes_made == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_a_pass_has_the_oldest_clip_and_those_nearest_in_length() -> None:
    fake = FakeEncoder()
    assert encode_all(fake, [50, 10, 40, 30, 11, 70, 9]) == [50, 10, 40, 30, 11, 70, 9]
    assert fake.passes_made == [[50, 40, 30, 70], [10, 11, 9]]


def test_recordings_take_turns() -> None:
    fake = FakeEncoder()
    fake.go_on.clear()

    async def short_beside_long() -> None:
        batching = Batching(fake)
        long = [asyncio.ensure_future(batching.encode(clip_of(100 + number, "long"))) for number in range(12)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # its first pass, of four, has been taken
        short = [asyncio.ensure_future(batching.encode(clip_of(1, recording_id))) for recording_id in ("x", "y")]
        await asyncio.sleep(0)
        fake.go_on.set()
        await asyncio.gather(*long, *short)

    asyncio.run(short_beside_long())
    assert fake.passes_made == [[100, 101, 102, 103], [1, 1, 104, 105], [106, 107, 108, 109], [110, 111]]


def test_a_failed_pass_is_an_error_of_its_clips_alone() -> None:
    found = encode_all(FakeEncoder(), [1, 13, 2, 3, 4, 0, 5])
    assert [type(each) for each in found] == [int, RuntimeError, int, int, int, ValueError, RuntimeError]


def test_clips_that_cannot_be_divided_into_passes_are_not_waited_for() -> None:
    class UndividedEncoder(FakeEncoder):
        def passes(self, samples: Sequence[int]) -> Iterator[slice]:
            raise RuntimeError("no device")

    found = encode_all(UndividedEncoder(), [1, 2])
    assert [str(each) for each in found] == ["no device"] * 2


@pytest.mark.engine
def test_a_gpu_that_is_lost_ends_the_engine_and_one_without_memory_does_not() -> None:
    import torch

    def error_of(raised: Exception) -> Any:
        fake = FakeEncoder()
        fake.error = raised
        [found] = encode_all(fake, [1])
        return found

    lost = error_of(torch.AcceleratorError("CUDA error: an illegal memory access\nmore"))
    assert isinstance(lost, EngineDied)
    assert lost.message.endswith("CUDA error: an illegal memory access")
    assert isinstance(error_of(torch.OutOfMemoryError("CUDA out of memory")), torch.OutOfMemoryError)


def test_a_cancelled_call_does_not_affect_the_others() -> None:
    fake = FakeEncoder()
    fake.go_on.clear()

    async def cancel_two() -> list[Any]:
        batching = Batching(fake)
        calls = [asyncio.ensure_future(batching.encode(clip_of(length))) for length in range(1, 8)]
        while batching._running is None:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the first pass, of four, has been taken
        calls[1].cancel()
        calls[5].cancel()
        fake.go_on.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(cancel_two())
    assert [index for index, each in enumerate(found) if isinstance(each, asyncio.CancelledError)] == [1, 5]
    assert [each for each in found if isinstance(each, int)] == [1, 3, 4, 5, 7]
    assert fake.passes_made[1:] == [[5, 7]]


def test_a_pass_with_room_waits_for_more_clips_where_it_may() -> None:
    fake, may_gather = FakeEncoder(), True

    async def one_after_another() -> None:
        batching = Batching(fake, gather_s=0.05, may_gather=lambda: may_gather)
        calls = [asyncio.ensure_future(batching.encode(clip_of(length))) for length in (1, 2)]
        await asyncio.sleep(0)  # the pass is waiting
        await asyncio.gather(*calls, batching.encode(clip_of(3)))

    asyncio.run(one_after_another())
    assert fake.passes_made == [[1, 2, 3]]
    may_gather = False
    asyncio.run(one_after_another())
    assert fake.passes_made[1:] == [[1, 2], [3]]


def test_a_full_pass_does_not_wait() -> None:
    fake = FakeEncoder()

    async def four() -> list[int]:
        batching = Batching(fake, gather_s=3600)
        calls = [asyncio.ensure_future(batching.encode(clip_of(length))) for length in range(1, 6)]
        return [await call for call in calls[:4]]

    assert asyncio.run(asyncio.wait_for(four(), 60)) == [1, 2, 3, 4]
