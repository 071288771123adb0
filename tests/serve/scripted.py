"""An endpoint as ``rayscribe serve`` runs it, on engines that a folder and keywords control.

    python -m tests.serve.scripted FOLDER NAME=VALUE …     settings by name
    import_path: tests.serve.scripted:build                in a Serve config; ``folder`` is one of its args

The keyword ``wait`` makes an engine wait until FOLDER/go exists; ``die`` raises EngineDied; the others are those of
``tests.pipelines.jobs``; ``which model`` is answered with the engine's model, ``which node`` with the name of its node.
An engine that waits creates FOLDER/waits-PID; a clip that is cancelled while it waits creates FOLDER/cancelled.
"""

import asyncio
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve

from cluster.session import cluster_layout
from serve.app import application
from serve.server import run
from serve.settings import ServeSettings
from speech.engines.base import ClipRequest, EngineConfig
from speech.engines.fake import FakeEngine, reply_with_options
from speech.errors import EngineDied
from speech.models.families import Family
from tests.pipelines.jobs import obey_keywords, spoken
from tests.pipelines.raylets import say_node


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


def start(config: EngineConfig, family: Family, folder: Path) -> FakeEngine:
    def reply(clip: ClipRequest) -> str:
        if "which node" in clip.options.keywords:
            return say_node(clip)
        return config.model if "which model" in clip.options.keywords else reply_with_options(clip)

    return FakeEngine(reply, before=partial(obey_folder, folder=folder), languages=spoken)


def build(args: dict[str, Any]) -> serve.Application:
    """The application on the cluster that this process has joined."""
    folder = Path(args.pop("folder"))
    settings = ServeSettings.from_settings(args)
    on_cluster = settings.cluster.model_copy(update={"address": "auto"})
    return application(settings, cluster_layout(on_cluster), partial(start, folder=folder))


def main() -> None:
    # As a script this module is __main__; replicas must import it by name.
    from tests.serve import scripted

    folder, *settings = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    values = dict(setting.split("=", 1) for setting in settings)
    given = {name: json.loads(value) if value.startswith("[") else value for name, value in values.items()}
    run(ServeSettings.from_settings(given), partial(scripted.start, folder=Path(folder)))


if __name__ == "__main__":
    main()
