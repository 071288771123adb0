"""Names and messages that the commands print may hold brackets, which are markup to the library that prints."""

import pytest

from pipelines.evaluate import Evaluation, score
from pipelines.progress import Progress
from pipelines.status import Status
from pipelines.summary import Summary

NAME = "[bold]a[/INST]"


def print_progress() -> None:
    with Progress() as progress:
        progress.say(f"joining Ray at {NAME}")


def print_status() -> None:
    error = {"stage": "request", "code": "bad_keywords", "message": NAME}
    failure = {"recording_id": "1", "attempt": 1, "error": error}
    Status("out", "calls.jsonl", 1, {}, [failure], holder=None, finished=True).print(each_failure=True)


@pytest.mark.parametrize(
    "show",
    [
        lambda: Summary().print(NAME),
        print_status,
        print_progress,
        lambda: Evaluation([score(NAME, "one", "one", english=True)], failed=0, rtfx=None).print(),
    ],
    ids=["summary", "status", "progress", "evaluation"],
)
def test_brackets_are_printed_as_they_are(show: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(show)
    show()
    assert NAME in "".join(capsys.readouterr())
