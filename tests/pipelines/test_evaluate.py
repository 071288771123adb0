"""WER and CER of texts whose errors can be counted by hand."""

import json
from pathlib import Path

import pytest

from pipelines.evaluate import Evaluation, evaluate, score
from pipelines.output import Output
from speech.recording import Recording
from speech.transcript import Transcript
from storage.filesystem import Storage


def test_errors_and_reference_words_are_summed_over_recordings() -> None:
    scores = [
        score("a", "one two three four", "one two three four", english=False),
        score("b", "alpha beta", "alpha gamma delta", english=False),  # a substitution and an insertion
    ]
    evaluation = Evaluation(scores, failed=0, rtfx=None)
    assert evaluation.wer == pytest.approx(2 / 6)
    assert 0 < evaluation.cer < 1


def test_english_is_normalised_as_whisper_does() -> None:
    same = score(
        "a", "I'm at twenty-two Baker Street, Mr. Holmes!", "i am at 22 baker street mister holmes", english=True
    )
    assert same.words.wer == 0


def test_other_languages_keep_their_words() -> None:
    assert score("a", "Der Zug fährt.", "der zug fährt", english=False).words.wer == 0
    assert score("a", "Der Zug fährt.", "der zug steht", english=False).words.wer == pytest.approx(1 / 3)


def test_an_empty_hypothesis_is_all_deletions() -> None:
    assert score("a", "hello there", "", english=True).words.wer == 1.0


def test_each_of_several_models_has_its_own_rate(capsys: pytest.CaptureFixture[str]) -> None:
    scores = [
        score("a", "one two", "one two", english=False, model="granite"),
        score("b", "one two", "one", english=False, model="whisper"),
        score("c", "one two", "one two", english=False, model="whisper"),
    ]
    evaluation = Evaluation(scores, failed=0, rtfx=None)
    assert evaluation.wer_by_model == {"granite": 0.0, "whisper": 0.25}
    evaluation.print()
    assert "whisper: WER 25.00%" in capsys.readouterr().out


def test_a_reference_may_be_a_number(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"), Storage())
    output.claim({}, {"manifest": "m.jsonl"}, allow_changes=False)
    output.commit([Transcript(Recording(id="1", audio="a.wav"), "model", "22").to_row()])
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "1", "audio": "a.wav", "text": 22}))
    assert evaluate(output.uri, str(tmp_path / "m.jsonl"), {}).wer == 0
