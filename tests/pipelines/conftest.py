"""One Ray for all tests of the job, and one run whose output many of them look at.

A run costs seconds, most of them for actors to start. So what can be seen in one and the same output is
asked of ``finished``, and a test that goes on from a finished run takes a copy of it.
"""

import shutil
from pathlib import Path

import pytest

from tests.pipelines.jobs import Finished, answers_in, job_of, make_calls, manifest_of, start_scripted


@pytest.fixture
def calls(tmp_path: Path, ray_here: None) -> Path:
    """A folder with calls, good and bad."""
    make_calls(tmp_path)
    return tmp_path


@pytest.fixture(scope="package")
def finished(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run over calls, good and bad. To be looked at, not touched."""
    from pipelines.run import run

    folder = tmp_path_factory.mktemp("finished")
    make_calls(folder)
    rows: list[dict[str, object]] = [
        {"audio": "agent.flac", "id": "good", "queue": "billing", "priority": 3},
        {"audio": "customer.flac", "id": "named", "keywords": ["Kuhn"], "language": "de"},
        {"audio": "empty.wav", "id": "empty"},
        {"audio": "missing.wav", "id": "missing"},
        {"audio": "notes.wav", "id": "text"},
        {"audio": "agent.flac", "id": "tongue", "language": "xx"},
        {"audio": "agent.flac", "id": "blank-keyword", "keywords": "a,,b"},
        {"audio": "agent.flac", "id": "late", "offset": 100_000},
        {"audio": "agent.flac", "id": "backwards", "duration": -1},
        {"audio": "agent.flac", "id": "refused", "keywords": ["refuse me"]},
        {"audio": "agent.flac", "id": "fault", "keywords": ["break me"]},
        *({"audio": "agent.flac", "id": f"call-{number:02}", "duration": 2} for number in range(60)),
    ]
    manifest = manifest_of(folder, *rows)
    run(job_of(manifest, folder / "out", listeners=2, storage_options={"secret": "hush"}), start_scripted)
    return Finished(folder, folder / "out", rows, answers_in(folder / "out"))


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Finished:
    """The same, to go on from."""
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
    return Finished(tmp_path, tmp_path / "out", list(finished.rows), finished.answers)
