"""What takes seconds to import is imported where it is used. Which package may import which is in pyproject.toml
(import-linter), which cannot see what a process has loaded."""

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


def test_modules_outside_the_engines_load_no_heavy_package() -> None:
    assert loaded_by(f"import {', '.join(LIGHT)}") & HEAVY == set()


def test_the_command_line_loads_neither_numpy_nor_storage() -> None:
    """``rayscribe --help`` answers without the import time of numpy, pyarrow and fsspec."""
    assert loaded_by("import rayscribe") & (HEAVY | {"pyarrow", "fsspec", "numpy", "av", "onnxruntime"}) == set()
