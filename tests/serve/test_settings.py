"""The endpoint's settings: flags, YAML, Serve's config."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

import rayscribe
from serve.settings import ServeSettings
from speech.errors import UsageError


def test_flags_win_over_yaml(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("port: 9000\nmax-requests: 7\nnames: [whisper-1]\n")
    parsed = rayscribe._parser().parse_args(["serve", "--config", str(config), "--port", "9001"])
    settings = ServeSettings.from_settings(rayscribe._settings(parsed, ServeSettings))
    assert (settings.port, settings.max_requests, settings.names) == (9001, 7, ("whisper-1",))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--host", "0.0.0.0"], "api-keys"),
        (["--max-requests", "none"], "--max-requests must be a whole number"),
        (["--port", "70000"], "port"),
        (["--model", "no-model"], "no-model"),
        (["--model", "demo/model", "--engine", "transformers", "--speculation", "ctc"], "transformers"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert rayscribe.main(["serve", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_a_missing_key_file_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert rayscribe.main(["serve", "--model", "demo/model", "--api-keys", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean --max-requests"):
        ServeSettings.from_settings({"max_request": 1})


def test_engine_settings_are_included() -> None:
    settings = ServeSettings.from_settings({"model": "demo/model", "concurrent_clips": 3})
    assert settings.engine_config.concurrent_clips == 3


def test_the_serve_config_is_valid() -> None:
    config = yaml.safe_load(Path("serve/config.yaml").read_text())
    schema = ServeDeploySchema.model_validate(config)
    [application] = schema.applications
    assert application.import_path == "serve.app:build"
    settings = ServeSettings.model_validate(application.args)
    assert settings.api_keys
    names = {deployment.name for deployment in application.deployments}
    assert names <= {"Endpoint", "Listener", "Transcriber"}
