"""example.py runs as its docstring says."""

import json
import subprocess
import sys
from pathlib import Path

import jiwer
import pytest

pytestmark = pytest.mark.engine


def test_it_prints_both_speakers() -> None:
    rows = map(json.loads, Path("demo/samples/manifest.jsonl").read_text().splitlines())
    sample = next(row for row in rows if row["id"] == "billing-001")
    command = [sys.executable, "example.py", f"demo/samples/{sample['audio']}", "demo/model", "transformers"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    times, said = zip(*(line.strip().split(" ", 1) for line in printed), strict=True)
    assert list(map(float, times)) == sorted(map(float, times))
    speakers, texts = zip(*(line.split(": ", 1) for line in said), strict=True)
    assert set(speakers) == {"agent", "customer"}
    assert jiwer.wer(sample["text"], " ".join(texts)) < 0.2
