"""WER and CER of a run's transcripts against the references in the manifest's ``text``.

Computed as on the Open ASR Leaderboard: texts are normalised by Whisper's normaliser (the English one, or
the basic one for other languages; arXiv 2212.04356, appendix C), then errors and reference words are each
summed over all recordings, and the sums divided. Recordings without a reference are ignored; failed
recordings with a reference are counted but not scored.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import jiwer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines import manifest
from pipelines.output import Output
from speech.errors import UsageError
from storage.filesystem import Storage

# Transcripts longer than this, in words, are cut when printed.
SHOWN_WORDS = 60


@dataclass(frozen=True)
class Score:
    """One recording's normalised reference and hypothesis, and their alignment."""

    recording_id: str
    reference: str
    hypothesis: str
    words: jiwer.WordOutput
    characters: jiwer.CharacterOutput
    model: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Scores of all recordings that have a reference."""

    scores: list[Score]
    failed: int  # recordings with a reference and no transcript
    rtfx: float | None

    @property
    def wer(self) -> float:
        """Word error rate: substitutions, deletions and insertions over the number of reference words."""
        return _rate([score.words for score in self.scores])

    @property
    def wer_by_model(self) -> dict[str, float]:
        """Word error rate of what each model has transcribed."""
        words: dict[str, list[jiwer.WordOutput]] = defaultdict(list)
        for score in self.scores:
            words[score.model].append(score.words)
        return {model: _rate(outputs) for model, outputs in sorted(words.items())}

    @property
    def cer(self) -> float:
        """Character error rate."""
        return _rate([score.characters for score in self.scores])

    def print(self) -> None:
        """Prints each reference and hypothesis, with differing words marked, and the totals."""
        console = Console(markup=False)  # ids may hold brackets
        table = Table("recording", "WER", "reference / transcript", show_lines=True)
        for score in self.scores:
            reference, hypothesis = _marked(score)
            table.add_row(score.recording_id, f"{score.words.wer:.1%}", Text("\n").join([reference, hypothesis]))
        console.print(table)
        totals = [f"{len(self.scores)} recordings scored", f"WER {self.wer:.2%}", f"CER {self.cer:.2%}"]
        if self.rtfx:
            totals.append(f"RTFx {self.rtfx:.0f}")
        if self.failed:
            totals.append(f"{self.failed} with a reference have no transcript")
        console.print(" · ".join(totals), highlight=False)
        if len(rates := self.wer_by_model) > 1:
            for model, rate in rates.items():
                console.print(f"{model}: WER {rate:.2%}", highlight=False, soft_wrap=True)


def evaluate(output_uri: str, manifest_uri: str | None, storage_options: Mapping[str, object]) -> Evaluation:
    """Scores a run.

    Args:
        output_uri: the run's output folder.
        manifest_uri: the manifest with the references; None: the run's own manifest.
        storage_options: fsspec's options for object storage.

    Raises:
        UsageError: the output or the manifest cannot be read, or no recording has a reference.
    """
    storage = Storage(storage_options)
    output = Output(output_uri, storage)
    job, report = output.require_job(), output.report() or {}
    rows = manifest.read(manifest_uri or job["manifest"], storage, apart_from=output.has)
    references = {recording_id: str(row["text"]) for recording_id, row in rows if row.get("text")}
    scores = []
    for batch in output.batches("ok", ["recording_id", "model", "text", "language", "task"]):
        for row in batch.to_pylist():
            reference = references.pop(row["recording_id"], None)
            if reference is not None:
                english = row["language"] == "en" and row["task"] == "transcribe"
                scores.append(score(row["recording_id"], reference, row["text"], english, row["model"]))
    if not scores and not references:
        raise UsageError(
            "no_reference",
            "no recording has a reference transcript: give it in the manifest's column 'text', or --manifest",
        )
    scores.sort(key=lambda each: each.recording_id)
    return Evaluation(scores, failed=len(references), rtfx=report.get("rtfx"))


def score(recording_id: str, reference: str, hypothesis: str, english: bool, model: str = "") -> Score:
    """Aligns one hypothesis with its reference, in words and in characters."""
    normalise = normaliser(english)
    reference, hypothesis = normalise(reference), normalise(hypothesis)
    return Score(
        recording_id,
        reference,
        hypothesis,
        jiwer.process_words(reference, hypothesis),
        jiwer.process_characters(reference, hypothesis),
        model,
    )


@cache
def normaliser(english: bool) -> Callable[[str], str]:
    """Whisper's text normaliser: the English one, or the basic one for other languages."""
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer() if english else BasicTextNormalizer()


def _rate(outputs: list[jiwer.WordOutput] | list[jiwer.CharacterOutput]) -> float:
    errors = sum(each.substitutions + each.deletions + each.insertions for each in outputs)
    total = sum(each.hits + each.substitutions + each.deletions for each in outputs)
    return errors / total if total else 0.0


def _marked(score: Score) -> tuple[Text, Text]:
    """Reference and hypothesis, with differing words in bold red, cut after SHOWN_WORDS."""
    reference, hypothesis = Text(), Text()
    for chunk in score.words.alignments[0]:
        same = chunk.type == "equal"
        for text, words, start, end in (
            (reference, score.words.references[0], chunk.ref_start_idx, chunk.ref_end_idx),
            (hypothesis, score.words.hypotheses[0], chunk.hyp_start_idx, chunk.hyp_end_idx),
        ):
            for word in words[start : min(end, SHOWN_WORDS)]:
                text.append(f"{word} ", style="" if same else "bold red")
    for text, words in ((reference, score.words.references[0]), (hypothesis, score.words.hypotheses[0])):
        if len(words) > SHOWN_WORDS:
            text.append(f"… ({len(words)} words)", style="dim")
    return reference, hypothesis
