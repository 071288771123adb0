"""An endpoint as ``rayscribe serve`` runs it, on engines that wait and die when they are told to.

    python -m tests.serve.mortal FOLDER NAME=VALUE …     settings by name

Keywords tell an engine what to do: ``wait`` until there is a file FOLDER/go, ``die`` as vLLM's do. An engine that
waits leaves a file FOLDER/waits-PID; a clip that is given up meanwhile one FOLDER/given-up.
"""

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

from serve.server import run
from serve.settings import ServeSettings
from speech.engine import ClipRequest, Decoding, EngineConfig
from speech.errors import EngineDied
from speech.models import Family
from tests.pipelines.echo import EchoEngine


class MortalEngine(EchoEngine):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def decode(self, clip: ClipRequest) -> Decoding:
        if "die" in clip.options.keywords:
            raise EngineDied("engine_died", "as asked")
        try:
            while "wait" in clip.options.keywords and not (self._folder / "go").exists():
                (self._folder / f"waits-{os.getpid()}").touch()
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            (self._folder / "given-up").touch()
            raise
        return await super().decode(clip)


def start_mortal(config: EngineConfig, family: Family, folder: Path) -> MortalEngine:
    return MortalEngine(folder)


def main() -> None:
    # Started as a script, this module has another name; replicas are to find it by its own.
    from tests.serve import mortal

    folder, *settings = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    start = partial(mortal.start_mortal, folder=Path(folder))
    run(ServeSettings.from_settings(dict(setting.split("=") for setting in settings)), start)


if __name__ == "__main__":
    main()
