"""One control plane for all tests that do not need one of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.plugin_choice import chosen_plugin


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Without nodes; tests add theirs under names of their own."""
    with ControlPlane.start(tmp_path_factory.mktemp("control-plane")) as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which Kubernetes plugin the engine's tests ran with, if any did."""
    if chosen_plugin.cache_info().currsize:
        terminalreporter.write_line(f"kubernetes plugin: {chosen_plugin()}")
