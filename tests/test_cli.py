"""The command line: what it refuses, in one line, before anything is started."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

import rayscribe
from pipelines.job import Job
from pipelines.output import Output
from pipelines.summary import Summary
from serve.settings import ServeSettings
from speech.errors import UsageError
from storage.filesystem import Storage


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"audio": "a.wav"}\n')
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert rayscribe.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rayscribe: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_manifest_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing.jsonl")
    message = refused(capsys, "transcribe", missing, "--output", str(tmp_path / "out"))
    assert missing in message


def test_an_output_that_cannot_be_written(capsys: pytest.CaptureFixture[str], manifest: str) -> None:
    message = refused(capsys, "transcribe", manifest, "--output", "/proc/nowhere")
    assert "/proc/nowhere" in message


def test_what_the_model_lacks_is_refused_with_what_it_has(
    capsys: pytest.CaptureFixture[str], manifest: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    assert "de, en" in refused(capsys, "transcribe", manifest, "--output", out, "--language", "xx")
    assert "en-de" in refused(
        capsys, "transcribe", manifest, "--output", out, "--task", "translate", "--target-language", "sv"
    )
    assert "keywords" in refused(capsys, "transcribe", manifest, "--output", out, "--punctuation")


def test_wrong_values_name_their_option(capsys: pytest.CaptureFixture[str], manifest: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "--concurrent-clips must be a whole number (got 'none')" in refused(
        capsys, "transcribe", manifest, "--output", out, "--concurrent-clips", "none"
    )
    assert "keyword" in refused(capsys, "transcribe", manifest, "--output", out, "--keywords", "a,,b")
    assert "JSON" in refused(capsys, "transcribe", manifest, "--output", out, "--storage-options", "{secret")
    assert "no-model" in refused(capsys, "transcribe", manifest, "--output", out, "--model", "no-model")


def test_a_secret_in_bad_storage_options_is_not_repeated(
    capsys: pytest.CaptureFixture[str], manifest: str, tmp_path: Path
) -> None:
    message = refused(capsys, "transcribe", manifest, "--output", str(tmp_path), "--storage-options", '{"key": hush}')
    assert "hush" not in message
    twice = '{"s3": {"key": "hush", "key": "hush"}}'
    message = refused(capsys, "transcribe", manifest, "--output", str(tmp_path), "--storage-options", twice)
    assert "'key' is there more than once" in message
    assert "hush" not in message


SECRET = '{"secret": "sesame"}'


@pytest.mark.parametrize("command", ["transcribe m", "status", "evaluate"])
def test_storage_options_come_from_a_file_or_the_environment(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that secrets need not be on the command line."""
    (tmp_path / "options.json").write_text(SECRET)

    def options(*arguments: str) -> object:
        name, *rest = command.split()
        output = ["--output", "out"] if rest else ["out"]
        parsed = rayscribe._parser().parse_args([name, *rest, *output, *arguments])
        return rayscribe._settings(parsed, Job)["storage_options"] if rest else rayscribe._storage_options(parsed)

    assert options() == {}
    assert options("--storage-options", f"@{tmp_path}/options.json") == {"secret": "sesame"}
    monkeypatch.setenv("RAYSCRIBE_STORAGE_OPTIONS", SECRET)
    assert options() == {"secret": "sesame"}
    assert options("--storage-options", '{"key": "k"}') == {"key": "k"}
    monkeypatch.setenv("RAYSCRIBE_STORAGE_OPTIONS", f"@{tmp_path}/options.json")
    assert options() == {"secret": "sesame"}


def test_storage_options_of_yaml_win_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSCRIBE_STORAGE_OPTIONS", SECRET)
    (tmp_path / "job.yaml").write_text("storage-options: {key: k}\nallow-scheme: [http, FTP]\n")
    parsed = rayscribe._parser().parse_args(["transcribe", "m", "--output", "o", "--config", f"{tmp_path}/job.yaml"])
    job = Job.from_settings(rayscribe._settings(parsed, Job))
    assert job.storage_options == {"key": "k"}
    assert job.allow_scheme == ("http", "ftp")


def test_an_option_that_yaml_invents_is_named(
    capsys: pytest.CaptureFixture[str], manifest: str, tmp_path: Path
) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("langauge: de\n")
    assert "langauge" in refused(capsys, "transcribe", manifest, "--output", str(tmp_path), "--config", str(config))


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("language: fr\nconcurrent-clips: 7\nkeywords: [Alpha, Beta]\n")
    parsed = rayscribe._parser().parse_args(
        ["transcribe", "m.jsonl", "--output", "out", "--config", str(config), "--language", "de"]
    )
    job = Job.from_settings(rayscribe._settings(parsed, Job))
    assert job.options.language == "de"
    assert job.engine_config.concurrent_clips == 7
    assert job.options.keywords == ("Alpha", "Beta")
    assert job.engine_config.dtype == "auto"


def test_keywords_come_from_a_file_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Kuhn\n\n  Van  der Berg \n")
    parsed = rayscribe._parser().parse_args(
        ["transcribe", "m.jsonl", "--output", "out", "--keywords-file", str(tmp_path / "names.txt")]
    )
    assert Job.from_settings(rayscribe._settings(parsed, Job)).options.keywords == ("Kuhn", "Van der Berg")


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("transcribe", {name: field for name, field in Job.flat_fields().items() if name != "manifest"}),
        ("serve", ServeSettings.flat_fields()),
    ],
)
def test_every_setting_has_a_flag_and_a_description(command: str, settings: dict[str, FieldInfo]) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "rayscribe", command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name, field in settings.items():
        assert field.description
        assert (f"--{name.replace('_', '-')}" in shown) == (name not in rayscribe.NO_FLAGS)


def test_paths_that_are_not_utf8_are_stored_and_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = Output(str(tmp_path), Storage())
    output.claim({}, {"manifest": "caf\udce9.csv"}, allow_changes=False)
    assert output.require_job()["manifest"] == "caf\udce9.csv"
    assert rayscribe.main(["status", str(tmp_path)]) == 0
    assert r"caf\udce9.csv" in capfd.readouterr().out


def test_secrets_are_not_shown_with_a_job() -> None:
    job = Job.from_settings({"manifest": "m", "output": "o", "storage_options": {"secret": "hush"}})
    assert "hush" not in repr(job)


@pytest.mark.parametrize(("accept", "failed", "code"), [(False, 0, 0), (False, 1, 3), (True, 1, 0)])
def test_recordings_that_failed_are_told_by_the_exit_code_unless_accepted(accept: bool, failed: int, code: int) -> None:
    job = Job.from_settings({"manifest": "m", "output": "o", "accept_failed": accept})
    assert rayscribe._finished(job, Summary(failed_before=failed)) == code


def test_a_job_without_its_manifest_says_so() -> None:
    with pytest.raises(UsageError, match="manifest"):
        Job.from_settings({"output": "o"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\nb: 2\n", "line 2, column 2 is not YAML"),
        ("language: de\nlanguage: en\n", "'language' more than once"),
        ("max-requests: 1\nmax_requests: 2\n", "'max_requests' more than once"),
        ("models:\n- model: a\n  where: {tier: x, tier: y}\n", "'tier' more than once"),
        ("x: '\x01'", "is not YAML"),
        ("- a", "'name: value'"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "job.yaml").write_text(text)
    message = refused(capsys, "transcribe", "m", "--output", "o", "--config", str(tmp_path / "job.yaml"))
    assert "job.yaml" in message
    assert said in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["transcribe", "m", "--langauge", "de"], "--langauge"),
        (["transcribe", "m", "--channels", "both"], "'split'"),
        (["transcribe", "m"], "--output is missing"),
        (["transcribe", "--output", "o"], "the manifest is missing"),
        (["transcribe", "m", "--keywords", "a", "--keywords-file", "f"], "not both"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refused(capsys, *arguments)


def test_a_signal_during_the_imports_ends_silently() -> None:
    """Pydantic's import raises the signal, which is where the time goes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        interrupted = (
            "import signal, sys, rayscribe\n"
            "class Signal:\n"
            "    def find_spec(self, name, path, target=None):\n"
            "        if name == 'pydantic': signal.raise_signal(int(sys.argv[1]))\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "sys.meta_path.insert(0, Signal())\n"
            "sys.exit(rayscribe.main(['status', 'out']))\n"
        )
        ended = subprocess.run([sys.executable, "-c", interrupted, str(int(number))], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (128 + number, "")
