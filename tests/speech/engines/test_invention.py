"""What the demo model invents in the sample calls, beside what its encoder's CTC head heard."""

import json
from pathlib import Path

import pytest

from speech.engines.base import ClipRequest
from speech.listener import Listener
from speech.quality.agreement import agreement
from speech.recording import Options, Recording
from testing.engines import RunningEngine

pytestmark = pytest.mark.engine

SAMPLES = Path("demo/samples")


def test_words_that_nobody_said_are_not_heard(greedy: RunningEngine) -> None:
    """The demo model goes on fluently and wrongly: ``a room in boston`` where ``i was charged`` was said."""
    rows = [json.loads(line) for line in (SAMPLES / "manifest.jsonl").read_text().splitlines()]
    flagged = 0
    for row in rows:
        if row["id"] not in ("billing-001", "long-012"):
            continue
        listened = Listener(clip_s=30.0).listen(Recording(id=row["id"], audio=str(SAMPLES / row["audio"])))
        clips = [ClipRequest(clip.samples, Options(), f"{row['id']}/{n}") for n, clip in enumerate(listened.clips)]
        for decoding in greedy.decode(*clips):
            assert decoding.hypothesis
            for passage in agreement(decoding.text, decoding.hypothesis).not_heard:
                flagged += 1
                assert passage in decoding.text
                assert passage not in row["text"]
    assert flagged >= 5
