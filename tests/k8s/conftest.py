from collections.abc import Iterator

import pytest

from tests.k8s.pod_runner import Network


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network.open() as network:
        yield network
