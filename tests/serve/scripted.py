"""An endpoint as ``rayscribe serve`` runs it, on engines that a folder and keywords control.

    python -m tests.serve.scripted FOLDER NAME=VALUE …     settings by name

The keyword ``wait`` makes an engine wait until FOLDER/go exists; ``die`` raises EngineDied; the others are those of
``tests.pipelines.jobs``. An engine that waits
creates FOLDER/waits-PID; a clip that is cancelled while it waits creates FOLDER/cancelled.
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
from tests.pipelines.jobs import obey_keywords


async def obey_folder(clip: ClipRequest, folder: Path) -> None:
    await obey_keywords(clip)
    if "die" in clip.options.keywords:
        raise EngineDied("engine_died", "by keyword")
    try:
        while "wait" in clip.options.keywords and not (folder / "go").exists():
            (folder / f"waits-{os.getpid()}").touch()
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        (folder / "cancelled").touch()
        raise


def main() -> None:
    # As a script this module is __main__; replicas must import it by name.
    from tests.serve import scripted

    folder, *settings = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    before = partial(scripted.obey_folder, folder=Path(folder))
    start = partial(start_fake, reply=reply_with_options, before=before)
    run(ServeSettings.from_settings(dict(setting.split("=") for setting in settings)), start)


if __name__ == "__main__":
    main()
