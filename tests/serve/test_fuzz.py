"""Fuzzed requests and broken files: none is answered 500."""

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok

from serve.metrics import RequestMetrics
from serve.routes import http_app
from serve.service import TranscriptionService
from serve.settings import ServeSettings
from testing.fuzzing import damaged_file, intact_files
from tests.pipelines.jobs import scripted_engine
from tests.serve.direct import MODEL, DirectBackend, client_of, post

KEY = {"authorization": "Bearer sk-one"}
SEED = 20261123
FILES = 60


@pytest.mark.slow
def test_no_request_made_from_the_openapi_description_is_a_server_error(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\n")
    known = ServeSettings.from_settings({"model": MODEL, "api_keys": str(tmp_path / "keys")})
    app = http_app(
        known,
        TranscriptionService(known, {known.engine_config.model: DirectBackend(scripted_engine())}, RequestMetrics()),
    )
    described = schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()
    operations = [found.ok() for found in described if isinstance(found, Ok)]
    assert len(operations) == 4
    for operation in operations:
        wrong = (
            [schemathesis.GenerationMode.NEGATIVE] if operation.body else []
        )  # requests without a body have no negative cases
        for mode in (schemathesis.GenerationMode.POSITIVE, *wrong):

            @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def try_one(case: schemathesis.Case) -> None:
                case.call_and_validate(headers=KEY, checks=[not_a_server_error])

            try_one()


@pytest.mark.slow
def test_broken_files_are_transcribed_or_refused_with_a_reason() -> None:
    files = intact_files()
    with client_of(scripted_engine()) as client:
        answers = [post(client, audio=damaged_file(files, SEED, number)[1]) for number in range(FILES)]
    statuses = {answer.status_code for answer in answers}
    assert statuses <= {200, 413, 415, 422}
    assert {200, 422} <= statuses
