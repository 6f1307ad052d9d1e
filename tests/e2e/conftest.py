from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.local_stack import LocalStack


@pytest.fixture(scope="session")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Two ranks and every tier in front of them."""
    with LocalStack(tmp_path_factory.mktemp("project"), ranks=2) as stack:
        yield stack
