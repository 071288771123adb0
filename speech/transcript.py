"""One recording's transcript, and the Parquet row that it is written as.

The README's output table describes the columns; ``parquet_schema()`` is their schema. A failed recording is a row of
the same schema with ``error`` set, so that no recording is dropped and both tables are read alike.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from speech.errors import RayscribeError
from speech.recording import Options, Recording
from speech.redaction import redact_uri

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Word:
    """One word, or one character of a script without spaces, with its times in seconds.

    Attributes:
        probability: product of the probabilities that the model gives to its tokens.
        ctc_score: how well it fits what the encoder's CTC head heard, from 0 to 1; None where CTC cannot spell it, and
            its times are estimated from its neighbours'.
    """

    text: str
    start_s: float
    end_s: float
    probability: float | None = None
    ctc_score: float | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """A text beside the CTC hypothesis of the same audio (``speech.quality.agreement``).

    Attributes:
        not_heard_share: share of the text's words that the hypothesis lacks.
        not_heard: passages of the text that it lacks.
        left_out_share: share of the hypothesis' words that the text lacks.
        left_out: passages of the hypothesis that it lacks.
    """

    not_heard_share: float
    not_heard: tuple[str, ...]
    left_out_share: float
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A time range of one speaker's speech and its text. Times are seconds from the start of the file."""

    channel: int
    speaker: str | None
    start_s: float
    end_s: float
    text: str
    avg_logprob: float | None = None  # mean natural-log probability of the output tokens
    flags: tuple[str, ...] = ()  # of speech.quality.flags
    words: tuple[Word, ...] = ()
    agreement: Agreement | None = None  # None: the engine has no hypothesis, or one in another language than the text


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a recording. Draft tokens are those proposed in speculative decoding."""

    audio_tokens: int = 0
    prompt_tokens: int = 0  # audio tokens included
    output_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True, slots=True)
class Transcript:
    """The result of one recording, transcribed or failed."""

    recording: Recording
    model: str
    text: str = ""
    segments: tuple[Segment, ...] = ()
    flags: tuple[str, ...] = ()
    duration_s: float | None = None
    speech_s: float | None = None  # summed over channels, by the voice activity detector
    channels: int | None = None  # how many were transcribed, each on its own
    error: RayscribeError | None = None
    attempt: int = 1
    usage: Usage = Usage()
    listen_s: float | None = None  # seconds spent opening, decoding and segmenting
    transcribe_s: float | None = None  # seconds from the first clip sent to the engine to the last text
    finished_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def status(self) -> str:
        """``ok`` or ``failed``: the partition of the row."""
        return "failed" if self.error else "ok"

    def with_job_fields(self, attempt: int, listen_s: float) -> "Transcript":
        """A copy with the fields that only the job knows."""
        return replace(self, attempt=attempt, listen_s=listen_s)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The transcript of a row with status ok. Of its options a row has language and task; the rest are default."""
        options = Options.model_construct(language=row["language"], task=row["task"])
        recording = Recording(
            id=row["recording_id"],
            audio=row["audio"],
            options=options,
            language_probability=row.get("language_probability"),  # rows of earlier versions have none
        )
        return cls(
            recording=recording,
            model=row["model"],
            text=row["text"],
            segments=tuple(_segment(segment) for segment in row["segments"]),
            flags=tuple(row["flags"]),
            duration_s=row["duration_s"],
            speech_s=row["speech_s"],
            channels=row["channels"],
            attempt=row["attempt"],
            usage=Usage(**row["usage"]),
            listen_s=row["listen_s"],
            transcribe_s=row["transcribe_s"],
            finished_at=row["finished_at"],
        )

    def to_row(self) -> dict[str, Any]:
        """The Parquet row, its columns in the order of ``parquet_schema``."""
        return {
            "recording_id": self.recording.id,
            "audio": redact_uri(self.recording.audio),
            "duration_s": self.duration_s,
            "speech_s": self.speech_s,
            "channels": self.channels,
            "language": self.recording.options.language,
            "language_probability": self.recording.language_probability,
            "task": self.recording.options.task,
            "model": self.model,
            "text": self.text,
            "segments": [asdict(segment) for segment in self.segments],
            "flags": list(self.flags),
            "error": self.error and self.error.as_struct(),
            "attempt": self.attempt,
            "usage": asdict(self.usage),
            "listen_s": self.listen_s,
            "transcribe_s": self.transcribe_s,
            "finished_at": self.finished_at,
            "metadata": self.recording.metadata_json(),
            "status": self.status,
        }


def _segment(row: Mapping[str, Any]) -> Segment:
    words = tuple(Word(**word) for word in row["words"])
    return Segment(**{**row, "flags": tuple(row["flags"]), "words": words, "agreement": _agreement(row)})


def _agreement(segment: Mapping[str, Any]) -> Agreement | None:
    """Rows of earlier versions have none."""
    row = segment.get("agreement")
    return row and Agreement(**{**row, "not_heard": tuple(row["not_heard"]), "left_out": tuple(row["left_out"])})


def parquet_schema() -> "pa.Schema":
    """The output schema. ``status`` is the partition key: part of the path, not a column of the file."""
    import pyarrow as pa

    word = pa.struct(
        [
            ("text", pa.string()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("probability", pa.float32()),
            ("ctc_score", pa.float32()),
        ]
    )
    agreement = pa.struct(
        [
            ("not_heard_share", pa.float64()),
            ("not_heard", pa.list_(pa.string())),
            ("left_out_share", pa.float64()),
            ("left_out", pa.list_(pa.string())),
        ]
    )
    segment = pa.struct(
        [
            ("channel", pa.int32()),
            ("speaker", pa.string()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("text", pa.string()),
            ("avg_logprob", pa.float32()),
            ("flags", pa.list_(pa.string())),
            ("words", pa.list_(word)),
            ("agreement", agreement),
        ]
    )
    usage = pa.struct([(name, pa.int64()) for name in asdict(Usage())])
    error = pa.struct([("stage", pa.string()), ("code", pa.string()), ("message", pa.string())])
    return pa.schema(
        [
            ("recording_id", pa.string()),
            ("audio", pa.string()),
            ("duration_s", pa.float64()),
            ("speech_s", pa.float64()),
            ("channels", pa.int32()),
            ("language", pa.string()),
            ("language_probability", pa.float64()),
            ("task", pa.string()),
            ("model", pa.string()),
            ("text", pa.string()),
            ("segments", pa.list_(segment)),
            ("flags", pa.list_(pa.string())),
            ("error", error),
            ("attempt", pa.int32()),
            ("usage", usage),
            ("listen_s", pa.float64()),
            ("transcribe_s", pa.float64()),
            ("finished_at", pa.timestamp("us", tz="UTC")),
            ("metadata", pa.string()),
            ("status", pa.string()),
        ]
    )
