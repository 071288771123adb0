"""Who is tried again and who is given up; who works alone, and who together."""

import asyncio

import pytest
import ray

from pipelines.poison import AloneOrTogether, AttemptTracker


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that has lost one of two."""
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "here", "Alive": True}, {"NodeID": "lost", "Alive": False}])


def test_what_has_gone_down_twice_is_given_up_for_good(two_nodes: None) -> None:
    attempts = AttemptTracker()
    assert attempts.start_batch("engine", ["poison", "company", "done"], "here") == set()
    attempts.end("engine", ["done"])
    # The process has died, and the block is tried again.
    assert attempts.start_batch("engine", ["poison", "company", "done"], "here") == {"poison", "company"}
    assert attempts.begin("engine", "company", "here")
    assert attempts.begin("engine", "poison", "here", ended="company")
    # It has died again.
    assert attempts.start_batch("engine", ["poison", "company"], "here") == {"poison"}
    assert not attempts.begin("engine", "poison", "here")
    attempts.end("engine", ["poison"])
    assert attempts.start_batch("engine", ["poison", "other"], "here") == {"poison"}
    assert not attempts.begin("engine", "poison", "here")
    assert attempts.begin("listener", "poison", "here")  # the stages count apart


def test_a_lost_machine_is_no_recordings_fault(two_nodes: None) -> None:
    attempts = AttemptTracker()
    for _ in range(5):
        assert attempts.start_batch("engine", ["a"], "lost") == set()
        assert attempts.begin("listener", "a", "lost")


def test_one_alone_meets_nobody_and_is_not_kept_waiting_by_those_who_come_later() -> None:
    async def main() -> list[str]:
        turns, said, release = AloneOrTogether(), [], asyncio.Event()

        async def together(name: str) -> None:
            async with turns.together():
                said.append(f"{name} in")
                await release.wait()
                said.append(f"{name} out")

        async def alone() -> None:
            async with turns.alone():
                said.append("alone in")
                await asyncio.sleep(0)
                said.append("alone out")

        tasks = [asyncio.create_task(together(name)) for name in "ab"]
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(alone()))
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(together("late")))
        await asyncio.sleep(0.01)
        release.set()
        await asyncio.gather(*tasks)
        return said

    said = asyncio.run(main())
    assert said[:2] == ["a in", "b in"]
    assert said[4:] == ["alone in", "alone out", "late in", "late out"]


def test_one_who_gives_up_waiting_to_be_alone_bars_nobody() -> None:
    async def main() -> None:
        turns = AloneOrTogether()
        async with turns.together():
            waiting = asyncio.create_task(turns.alone().__aenter__())
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            async with asyncio.timeout(5), turns.together():
                pass

    asyncio.run(main())
