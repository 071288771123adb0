"""The order in which pending clips are decoded."""

import asyncio

import pytest

from speech.clip_slots import ClipSlots

Clip = tuple[str, bool]  # recording, live


def grants(
    clips: list[Clip], slots: int = 1, cancelled: frozenset[int] = frozenset(), max_per_recording: int = 100
) -> list[str]:
    """The recordings in the order in which their clips get a slot, all pending at once."""
    order: list[str] = []

    async def decode(pool: ClipSlots, recording: str, live: bool) -> None:
        async with pool.acquire(recording, live=live):
            order.append(recording)
            await asyncio.sleep(0)

    async def scenario() -> None:
        pool = ClipSlots(slots, max_per_recording)
        async with pool.acquire("first", live=False):
            tasks = [asyncio.create_task(decode(pool, *clip)) for clip in clips]
            await asyncio.sleep(0)
            for number in cancelled:
                tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 10))
    return order


def test_recordings_take_turns() -> None:
    long, short = [("long", False)] * 5, [("short", False)]
    assert grants(long + short) == ["long", "short", "long", "long", "long", "long"]
    assert grants([*long[:3], *short, ("other", False)]) == ["long", "short", "other", "long", "long"]


def test_live_clips_are_first() -> None:
    assert grants([("a", False)] * 2 + [("call", True)] * 2 + [("talk", True)]) == ["call", "talk", "call", "a", "a"]


def test_a_cancelled_clip_takes_no_turn() -> None:
    assert grants([("a", False), ("a", False), ("b", False)], cancelled=frozenset({0, 2})) == ["a"]


async def held(pool: ClipSlots, release: asyncio.Event) -> None:
    async with pool.acquire("x", live=False):
        await release.wait()


@pytest.mark.parametrize("turns", range(4))
def test_a_slot_granted_to_a_cancelled_clip_is_not_lost(turns: int) -> None:
    async def scenario() -> None:
        pool, release = ClipSlots(1, 1), asyncio.Event()
        holder = asyncio.create_task(held(pool, release))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(held(pool, release))
        await asyncio.sleep(0)
        release.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(holder, waiting, return_exceptions=True)
        async with asyncio.timeout(5), pool.acquire("y", live=False):
            pass

    asyncio.run(scenario())


def test_no_more_clips_hold_a_slot_than_there_are() -> None:
    async def scenario() -> None:
        pool, holding, most = ClipSlots(3, 3), 0, 0

        async def decode(number: int) -> None:
            nonlocal holding, most
            async with pool.acquire(str(number % 4), live=number % 5 == 0):
                holding += 1
                most = max(most, holding)
                await asyncio.sleep(0)
                holding -= 1

        await asyncio.gather(*(decode(number) for number in range(40)))
        assert most == 3

    asyncio.run(scenario())


def test_one_recording_holds_only_its_share() -> None:
    async def scenario() -> None:
        pool, release = ClipSlots(4, 2), asyncio.Event()
        holding: list[str] = []

        async def decode(recording: str) -> None:
            async with pool.acquire(recording, live=False):
                holding.append(recording)
                await release.wait()

        tasks = [asyncio.create_task(decode("long")) for _ in range(5)]
        await asyncio.sleep(0)
        assert holding == ["long"] * 2
        tasks.append(asyncio.create_task(decode("short")))
        await asyncio.sleep(0.01)
        assert holding == ["long", "long", "short"]  # at once, behind the pending clips of the long one
        release.set()
        await asyncio.gather(*tasks)
        assert holding.count("long") == 5

    asyncio.run(asyncio.wait_for(scenario(), 10))
