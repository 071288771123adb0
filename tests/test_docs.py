"""The documents at the root: what they refer to exists."""

import ast
import re
from pathlib import Path

import pytest

DOCUMENTS = ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "README.md"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_functions_exist(document: str) -> None:
    for path, name in re.findall(r"`([\w/]+\.py)(?::(\w+))?`", Path(document).read_text()):
        assert Path(path).exists(), path
        if name:
            defined = {getattr(node, "name", None) for node in ast.walk(ast.parse(Path(path).read_text()))}
            assert name in defined, f"{path}:{name}"


def test_the_list_of_benches_has_all_of_them() -> None:
    modules = {".".join(path.with_suffix("").parts) for path in Path("bench").rglob("*.py")}
    benches = {name for name in modules if "def main(" in Path(*name.split(".")).with_suffix(".py").read_text()}
    named = set(re.findall(r"bench(?:\.\w+)+", Path("bench/README.md").read_text()))
    # Processes that a bench of peers starts.
    assert named - {"bench.NAME"} == benches - {"bench.quick", "bench.peers.contenders", "bench.peers.faster_whisper"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", Path(document).read_text()):
        assert target.startswith("https://") or Path(target).exists(), target
