"""One control plane for all tests that do not need one of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.control_plane import ControlPlane


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Without nodes; tests add theirs under names of their own."""
    with ControlPlane.start(tmp_path_factory.mktemp("control-plane")) as running:
        yield running
