"""One Ray for all tests of the job."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.echo import make_calls


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def calls(tmp_path: Path, ray_here: None) -> Path:
    """A folder with calls, good and bad."""
    make_calls(tmp_path)
    return tmp_path
