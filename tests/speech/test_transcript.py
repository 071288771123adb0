"""The output row agrees with its Parquet schema."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from speech.errors import AudioError
from speech.recording import Options, Recording
from speech.transcript import Agreement, Segment, Transcript, Usage, Word, parquet_schema

NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
AGREEMENT = Agreement(0.75, ("hallo", "du"), 0.5, ("ja ja",))
OK = Transcript(
    recording=Recording(
        id="call-1", audio="s3://b/1.wav", options=Options(language="de"), metadata={"branch": "Łódź", "when": NOW}
    ),
    model="m",
    text="hallo welt",
    segments=(
        Segment(0, "agent", 0.5, 1.5, "hallo", -0.25, ("no_text",), (Word("hallo", 0.5, 0.9, 0.5),), AGREEMENT),
        Segment(1, None, 2.0, 3.0, "welt"),
    ),
    flags=("no_text",),
    duration_s=4.0,
    speech_s=2.0,
    channels=2,
    usage=Usage(1, 2, 3, 4, 5),
    listen_s=0.1,
    transcribe_s=0.2,
    finished_at=NOW,
)
FAILED = Transcript(recording=Recording(id="call-2", audio="2.wav"), model="m", error=AudioError("empty", "2.wav: …"))


def test_rows_survive_a_parquet_round_trip(tmp_path: Path) -> None:
    rows = [OK.to_row(), FAILED.to_row()]
    table = pa.Table.from_pylist(rows, schema=parquet_schema())
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    ok, failed = pa.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert ok["recording_id"] == "call-1"
    assert ok["segments"][0] == {
        "channel": 0,
        "speaker": "agent",
        "start_s": 0.5,
        "end_s": 1.5,
        "text": "hallo",
        "avg_logprob": -0.25,
        "flags": ["no_text"],
        "words": [{"text": "hallo", "start_s": 0.5, "end_s": 0.9, "probability": 0.5, "ctc_score": None}],
        "agreement": {
            "not_heard_share": 0.75,
            "not_heard": ["hallo", "du"],
            "left_out_share": 0.5,
            "left_out": ["ja ja"],
        },
    }
    assert ok["segments"][1]["agreement"] is None
    assert Transcript.from_row(ok).segments == OK.segments
    assert (ok["status"], ok["error"], ok["language"], ok["finished_at"]) == ("ok", None, "de", NOW)
    assert ok["usage"]["accepted_draft_tokens"] == 5
    assert json.loads(ok["metadata"]) == {"branch": "Łódź", "when": "2026-11-22 12:00:00.123456+00:00"}
    assert failed["status"] == "failed"
    assert failed["error"] == {"stage": "listen", "code": "empty", "message": "2.wav: …"}
    assert (failed["text"], failed["segments"], failed["duration_s"], failed["attempt"]) == ("", [], None, 1)


def test_a_row_of_a_version_without_agreement_is_read(tmp_path: Path) -> None:
    schema = parquet_schema()
    index, segments = schema.get_field_index("segments"), schema.field("segments").type.value_type
    older = pa.list_(pa.struct([field for field in segments if field.name != "agreement"]))
    table = pa.Table.from_pylist([OK.to_row()], schema=schema.set(index, pa.field("segments", older)))
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    [row] = pa.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert "agreement" not in row["segments"][0]
    assert [segment.agreement for segment in Transcript.from_row(row).segments] == [None, None]


def test_row_and_schema_name_the_same_columns_in_the_same_order() -> None:
    """``from_pylist`` silently drops a column that the schema lacks, and fills one that the row lacks."""
    schema = parquet_schema()
    row = OK.to_row()
    assert list(row) == schema.names
    for column, nested in (
        ("segments", row["segments"][0]),
        ("usage", row["usage"]),
        ("error", FAILED.to_row()["error"]),
    ):
        type_ = schema.field(column).type
        struct = type_.value_type if pa.types.is_list(type_) else type_
        assert list(nested) == [struct.field(index).name for index in range(struct.num_fields)]


def test_usage_adds_up() -> None:
    assert Usage(1, 2, 3, 4, 5) + Usage(10, 20, 30, 40, 50) == Usage(11, 22, 33, 44, 55)
