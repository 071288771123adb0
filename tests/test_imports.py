"""The light rooms stay light: what takes seconds to import comes when it is needed, and not before."""

import subprocess
import sys

HEAVY = {"vllm", "torch", "ray", "transformers"}
LIGHT = [
    "rayscribe",
    "cluster.doctor",
    "storage.filesystem",
    "pipelines.manifest",
    "speech.audio.decoding",
    "speech.engines.base",
    "serve.form",
    "serve.responses",
    "serve.http_errors",
    "serve.settings",
    "speech.errors",
    "speech.formats",
    "speech.quality.flags",
    "speech.listener",
    "speech.audio.live",
    "speech.models.families",
    "speech.recording",
    "speech.models.tags",
    "speech.transcriber",
    "speech.transcript",
]


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a fresh process has loaded after running ``code``."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_light_rooms_load_nothing_heavy() -> None:
    assert loaded_by(f"import {', '.join(LIGHT)}") & HEAVY == set()


def test_the_command_line_loads_less_still() -> None:
    """``rayscribe --help`` is answered before numpy, pyarrow and fsspec would be there."""
    assert loaded_by("import rayscribe") & (HEAVY | {"pyarrow", "fsspec", "numpy", "av", "onnxruntime"}) == set()


def test_speech_knows_neither_face_nor_cluster() -> None:
    loaded = loaded_by(f"import {', '.join(name for name in LIGHT if name.startswith('speech'))}")
    assert loaded & {"pipelines", "serve", "cluster", "rayscribe"} == set()
