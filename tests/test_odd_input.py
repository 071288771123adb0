"""Input that nobody means to give: each is refused with a code or escaped, and nothing hangs."""

import os
from pathlib import Path

import pytest

import rayscribe
from pipelines.status import printable
from speech.audio.decoding import open_audio
from speech.errors import AudioError, RequestError
from speech.recording import Options, Recording


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--output", ""], "output"),
        (["--output", "out", "--kv-cache-gb", "inf"], "--kv-cache-gb"),
        (["--output", "out", "--clip-timeout-s", "nan"], "--clip-timeout-s"),
    ],
)
def test_an_empty_or_infinite_option_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert rayscribe.main(["transcribe", "manifest.jsonl", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "call.wav")
    with pytest.raises(AudioError) as refused, open_audio(tmp_path / "call.wav"):
        pass
    assert refused.value.code == "unreadable"


@pytest.mark.parametrize("row", [{"audio": "a.wav", "offset": 1e308}, {"audio": "a\0b.wav"}])
def test_a_row_that_no_file_can_answer_is_bad(row: dict[str, object]) -> None:
    with pytest.raises(RequestError) as refused:
        Recording.from_row(row, Options())
    assert refused.value.code == "bad_row"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("call\x1b[31m\0 ä") == r"call\x1b[31m\x00 ä"
