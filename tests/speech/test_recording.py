"""Parsing of manifest rows: defaults, options of the row, ids, and malformed rows."""

import json
import math
from typing import Any

import pytest

from speech.errors import RequestError
from speech.recording import MAX_KEYWORDS, Options, Recording, clean_keywords, row_id


def read(defaults: Options | None = None, **row: Any) -> Recording:
    return Recording.from_row({"audio": "a.wav", **row}, defaults or Options())


# Keywords


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (" Acme  Corp ,Kim", ("Acme Corp", "Kim")),
        (["Kim", "Acme\tCorp", "Kim "], ("Kim", "Acme Corp")),
        (["O'Brien-Łódź 3000"], ("O'Brien-Łódź 3000",)),
        ('["Kim", "Acme, Inc"]'.replace(", Inc", ""), ("Kim", "Acme")),
        ("['Kim', \"O'Brien\"]", ("Kim", "O'Brien")),  # as pandas writes a list into CSV
        ("[]", ()),
        ("", ()),
        ("  ", ()),
        ([], ()),
    ],
)
def test_clean_keywords(given: Any, expected: tuple[str, ...]) -> None:
    assert clean_keywords(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        "a,,b",
        ["a", " "],
        ["a,b"],
        ["a\x00"],
        ["<|audio|>"],
        ["x" * 101],
        [f"k{n}" for n in range(MAX_KEYWORDS + 1)],
        [7],
    ],
)
def test_bad_keywords(given: Any) -> None:
    with pytest.raises(RequestError) as caught:
        clean_keywords(given)
    assert caught.value.code == "bad_keywords"


@pytest.mark.parametrize("given", [7, True, "a,,b", [None], "[a, b]", "['a' 'b']", "[" * 10_000 + "]", '{"a": 1}, '])
def test_bad_keywords_in_a_row_fail_the_row(given: Any) -> None:
    with pytest.raises(RequestError) as caught:
        read(keywords=given)
    assert caught.value.code == "bad_keywords"


# Options


def test_the_rows_options_override_the_runs() -> None:
    run = Options(language="de", keywords="Acme", channels="mix")
    row = read(run, language=" FR ", channels="split").options
    assert (row.language, row.keywords, row.channels) == ("fr", ("Acme",), "split")


def test_translation_is_into_english_by_default() -> None:
    assert read(task="translate", language="de").options.target_language == "en"
    with pytest.raises(RequestError, match="into what"):
        read(task="translate")
    with pytest.raises(RequestError, match="needs task 'translate'"):
        read(target_language="de")
    assert read(target_language="en").options.task == "transcribe"  # as in NeMo manifests


def test_a_row_with_task_transcribe_does_not_inherit_target_language() -> None:
    run = Options(task="translate", target_language="de")
    assert read(run).options.target_language == "de"
    assert read(run, task="transcribe").options.target_language is None


# Rows


def test_a_row_with_every_column() -> None:
    recording = Recording.from_row(
        {
            "audio_filepath": " s3://b/a.wav ",
            "id": 7,
            "offset": "1.5",
            "duration": 2,
            "speakers": "agent, customer",
            "text": "hello",
            "branch": {"city": "Łódź"},
            "agent_id": 3,
        },
        Options(),
    )
    assert (recording.id, recording.audio, recording.offset, recording.duration) == ("7", "s3://b/a.wav", 1.5, 2.0)
    assert (recording.speaker(0), recording.speaker(1), recording.speaker(2)) == ("agent", "customer", None)
    assert recording.text == "hello"
    assert recording.metadata == {"branch": {"city": "Łódź"}, "agent_id": 3}
    assert recording.metadata_json() == '{"agent_id": 3, "branch": {"city": "Łódź"}}'


@pytest.mark.parametrize(
    "given", ["agent,customer", '["agent", "customer"]', "['agent', 'customer']", ["agent", "customer"]]
)
def test_speakers_as_text_or_list(given: Any) -> None:
    assert read(speakers=given).speakers == ("agent", "customer")
    assert Recording(id="a", audio="a.wav", speakers=given).speakers == ("agent", "customer")


def test_a_channel_without_a_speaker() -> None:
    assert [read(speakers=",customer").speaker(channel) for channel in range(3)] == [None, "customer", None]
    assert read(speakers=["Smith, John"]).speakers == ("Smith, John",)
    assert read(speakers="").speakers == ()


def test_missing_cells_are_absent() -> None:
    recording = read(offset=math.nan, duration=None, language=None, keywords=None, note=None)
    assert recording == read()
    assert recording.metadata == {}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"audio": None}, "audio"),
        ({"audio": " "}, "audio"),
        ({"audio": ["a.wav"]}, "audio"),
        ({"offset": -1}, "offset"),
        ({"offset": "soon"}, "offset"),
        ({"offset": math.inf}, "offset"),
        ({"duration": 0}, "duration"),
        ({"duration": math.inf}, "duration"),
        ({"language": 5}, "language"),
        ({"task": "summarise"}, "task"),
        ({"channels": "left"}, "channels"),
        ({"speakers": [1, 2]}, "speakers"),
        ({"speakers": "[agent, customer]"}, "speakers"),
        ({"audio": "caf\udce9.wav"}, "audio"),
        ({"id": "caf\ud800"}, "id"),
        ({"speakers": ["caf\udce9"]}, "speakers"),
        ({"note": {"a": ["caf\udce9"]}}, "note"),
        ({"caf\udce9": "a"}, r"caf\\udce9"),
        ({"text": ["hello"]}, "text"),
        ({"punctuation": "perhaps"}, "punctuation"),
    ],
)
def test_a_malformed_row_names_its_column(row: dict[str, Any], column: str) -> None:
    with pytest.raises(RequestError, match=column) as caught:
        read(**row)
    assert caught.value.code == "bad_row"


def test_a_message_is_short_even_if_the_value_is_long() -> None:
    with pytest.raises(RequestError) as caught:
        read(text=["the patient said that " * 20])
    assert len(caught.value.message) < 150


def test_malformed_accepts_every_row() -> None:
    for row in ({}, {"audio": ["x"]}, {"id": "a", "offset": -1, "branch": 3}, {"audio": "a.wav", "language": 5}):
        recording = Recording.malformed(row)
        assert recording.id == row_id(row)
    assert Recording.malformed({"id": "a", "offset": -1, "branch": 3}).metadata == {"branch": 3}


def test_a_row_with_surrogates_can_be_written_as_utf8() -> None:
    row = {"id": "\udce9", "audio": "caf\udce9.wav", "note": ["\udce9"], "caf\udce9": "\ud800"}
    recording = Recording.malformed(row)
    assert (recording.id, recording.audio) == (r"\udce9", r"caf\udce9.wav")
    assert json.loads(recording.metadata_json()) == {"note": r'["\udce9"]', r"caf\udce9": r"\ud800"}
    assert Recording.model_validate_json(recording.model_dump_json()) == recording
    assert row_id({"audio": "caf\udce9.wav"}) != row_id({"audio": "caf\udce8.wav"})


def test_presigned_links_in_metadata_lose_their_query() -> None:
    link = "https://b.s3.amazonaws.com/a.wav"
    metadata = read(link=f"{link}?X-Amz-Signature=sesame", page="https://host/a?id=1").metadata_json()
    assert json.loads(metadata) == {"link": link, "page": "https://host/a?id=1"}


# Ids


def test_ids_are_stable_across_versions() -> None:
    """An output is resumed by its ids: this value must never change."""
    assert row_id({"audio": "s3://bucket/call.wav"}) == "5fa8b658f02753ff"


def test_default_ids_depend_on_uri_and_offset_only() -> None:
    plain = row_id({"audio": "a.wav"})
    same: list[dict[str, Any]] = [
        {"audio_filepath": "a.wav"},
        {"audio": " a.wav ", "text": "hello", "id": " "},
        *({"audio": "a.wav", "offset": offset} for offset in (0, 0.0, "0", None, math.nan)),
    ]
    assert {row_id(row) for row in same} == {plain}
    assert row_id({"audio": "a.wav", "offset": 30}) == row_id({"audio": "a.wav", "offset": "30.0"}) != plain
    assert row_id({"audio": "b.wav"}) != plain


def test_every_row_has_an_id() -> None:
    assert row_id({"id": 0}) == "0"
    assert row_id({"audio": "a.wav", "offset": "soon"}) != row_id({"audio": "a.wav", "offset": "later"})
    assert row_id({"note": "x"}) != row_id({"note": "y"})
    assert row_id({"audio": {"bytes": b"x"}})
