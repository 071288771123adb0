"""A file that is read while another process writes it."""

import io
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pytest

from serve import growing_file
from serve.growing_file import GrowingFile, LocalFile
from speech.listener import Listener, join_parts
from speech.recording import Recording
from testing.synthetic_audio import call, sndfile

DATA = bytes(range(256)) * 16


@pytest.fixture
def written() -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile(buffering=0) as file:
        yield file


def test_a_read_waits_for_its_bytes(written: BinaryIO) -> None:
    written.write(DATA[:1000])
    with LocalFile.of(written, len(DATA)).open() as file:
        assert isinstance(file, GrowingFile)
        assert file.read(900) == DATA[:900]
        writer = threading.Timer(0.05, written.write, [DATA[1000:]])
        writer.start()
        assert file.read(200) == DATA[900:1100]
        writer.join()
        assert file.seek(-3, os.SEEK_END) == len(DATA) - 3
        assert file.read() == DATA[-3:]
        assert file.read(1) == b""


def test_a_file_that_is_complete_is_read_as_a_file(written: BinaryIO) -> None:
    written.write(DATA)
    with LocalFile.of(written, len(DATA)).open() as file:
        assert isinstance(file, io.FileIO)
        assert file.read() == DATA


def test_a_file_that_stays_incomplete_is_an_error(written: BinaryIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_file, "STALL_S", 0.05)
    written.write(DATA[:10])
    with LocalFile.of(written, len(DATA)).open() as file, pytest.raises(TimeoutError):
        file.read(11)


@pytest.mark.parametrize(
    ("container", "coding"), [("WAV", "ULAW"), ("WAV", "PCM_16"), ("AU", "ULAW"), ("W64", "PCM_16")]
)
def test_the_first_part_needs_only_the_first_bytes(written: BinaryIO, container: str, coding: str) -> None:
    audio = sndfile(np.concatenate([call(exchanges=2)[0]] * 8), container, coding)
    written.write(audio[: len(audio) * 3 // 4])
    recording, listener = Recording(id="1", audio="call"), Listener(clip_s=30.0)
    with LocalFile.of(written, len(audio)).open() as file:
        parts = listener.stream(recording, file)
        first = next(parts)
        assert first.clips
        written.write(audio[len(audio) * 3 // 4 :])
        listened = join_parts([first, *parts])
    whole = listener.listen(recording, io.BytesIO(audio))
    assert [clip.start_s for clip in listened.clips] == [clip.start_s for clip in whole.clips]
    assert listened.duration_s == whole.duration_s
