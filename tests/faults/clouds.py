"""Every object store behind HTTP. A new one joins by being described as those are, and passes test_store_http*.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from tests.faults.cloud_azure import AZURE
from tests.faults.cloud_cases import Cloud
from tests.faults.cloud_gcs import GCS
from tests.faults.cloud_s3 import S3

CLOUDS: dict[str, Cloud] = {"azure": AZURE, "gcs": GCS, "s3": S3}


@pytest.fixture(scope="module", params=sorted(CLOUDS))
def cloud(request: pytest.FixtureRequest) -> Cloud:
    return CLOUDS[request.param]


def each(*names: str, of: Callable[[Cloud], Iterable[tuple[str, ...]]]) -> pytest.MarkDecorator:
    """Every cloud with every case that it has of it; a case has one value for each name."""
    found = [(name, *case) for name, cloud in CLOUDS.items() for case in of(cloud)]
    return pytest.mark.parametrize(("cloud", *names), found, indirect=["cloud"])
