"""What users install: the wheel's contents, and the exact versions that the images install."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("speech", "storage", "cluster", "pipelines", "planning", "serve")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel has, built from a copy without what git ignores."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE", "rayscribe.py"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(target)], cwd=source, check=True, capture_output=True)
    [wheel] = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    wheel.unlink()
    return target


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(installed: Path) -> None:
    def files(root: Path) -> set[str]:
        found = (path for name in PACKAGES for path in (root / name).rglob("*") if path.is_file())
        return {str(path.relative_to(root)) for path in found if "__pycache__" not in path.parts}

    assert files(installed) == files(ROOT)
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {*PACKAGES, "rayscribe.py"}


def test_an_installed_copy_answers(installed: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    imported = run("-c", "import rayscribe, serve.settings; print(rayscribe.__file__, serve.settings.__file__)")
    assert all(Path(path).is_relative_to(installed) for path in imported.split())
    assert "transcribe" in run("-m", "rayscribe", "--help")


@pytest.mark.parametrize("build", ["cpu", "gpu"])
def test_the_lock_admits_what_the_project_asks_for(build: str) -> None:
    """``make lock`` writes it; this fails where pyproject.toml has changed since."""
    lock = (ROOT / "k8s" / f"requirements-{build}.txt").read_text()
    assert not re.search(r"https?://|--index|--find-links", lock)
    locked: dict[str, set[str]] = {}
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        pinned, *hashes = entry.split(" \\\n")
        assert hashes, pinned
        assert all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", line) for line in hashes), pinned
        name, number = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.+!-]+)", pinned).groups()  # type: ignore[union-attr]
        locked.setdefault(canonicalize_name(name), set()).add(number)
    for asked in map(Requirement, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][build]]):
        found = locked[canonicalize_name(asked.name)]
        assert all(asked.specifier.contains(number) for number in found), (str(asked), found)
    assert PROJECT["name"] not in locked


def test_the_version_is_one(installed: Path) -> None:
    assert (installed / f"rayscribe-{PROJECT['version']}.dist-info").is_dir()
    assert version("rayscribe") == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
