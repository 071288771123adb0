"""An endpoint as ``rayscribe serve`` runs it, on engines that wait and die as a folder and keywords say.

    python -m tests.serve.scripted FOLDER NAME=VALUE …     settings by name

Keywords tell an engine what to do: ``wait`` until there is a file FOLDER/go, ``die`` as vLLM's do. An engine that
waits leaves a file FOLDER/waits-PID; a clip that is cancelled meanwhile one FOLDER/given-up.
"""

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

from serve.server import run
from serve.settings import ServeSettings
from speech.engines.base import ClipRequest
from speech.engines.fake import reply_with_options, start_fake
from speech.errors import EngineDied


async def obey_folder(clip: ClipRequest, folder: Path) -> None:
    if "die" in clip.options.keywords:
        raise EngineDied("engine_died", "as asked")
    try:
        while "wait" in clip.options.keywords and not (folder / "go").exists():
            (folder / f"waits-{os.getpid()}").touch()
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        (folder / "given-up").touch()
        raise


def main() -> None:
    # Started as a script, this module has another name; replicas are to find it by its own.
    from tests.serve import scripted

    folder, *settings = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    before = partial(scripted.obey_folder, folder=Path(folder))
    start = partial(start_fake, reply=reply_with_options, before=before)
    run(ServeSettings.from_settings(dict(setting.split("=") for setting in settings)), start)


if __name__ == "__main__":
    main()
