"""Who works alone, and who together."""

import asyncio

from pipelines.attempts import AloneOrTogether


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
