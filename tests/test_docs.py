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


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", Path(document).read_text()):
        assert target.startswith("https://") or Path(target).exists(), target
