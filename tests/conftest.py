"""What all tests share."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

from tests.cluster.plugin_choice import plugin_line
from tests.http_defaults import set_http_defaults
from tests.lanes import sort_into_lanes
from tests.programs import bring, needed_by, skip_without
from tests.workers import ByStack, longest_first

_LAST_LINE = "splitstack_last_line"
_last_lines = pytest.StashKey[set[str]]()

# Continuous integration judges a change by the same examples each time; elsewhere every run looks
# for new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
set_http_defaults()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bring-programs",
        action="store_true",
        help="first bring the programs that the chosen tests need, as tests.programs brings all",
    )


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than processors, since a third of the time is waiting."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByStack:
    """Instead of `--dist`'s."""
    return ByStack(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lanes for `-m`; the order in which several workers start."""
    sort_into_lanes(items)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: longest_first(item.nodeid))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a program that is not on this machine."""
    skip_without(needed_by(item))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Brings programs, saying so: to build one takes minutes."""
    if session.config.getoption("--bring-programs"):
        names = {name for item in session.items for name in needed_by(item)}
        capture = session.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            if bring(names) != 0:
                pytest.exit("a program that these tests need cannot be built", 1)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells the process that started it what is to be said at the end."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_LAST_LINE] = plugin_line()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """In the process that has started the workers."""
    said = getattr(node, "workeroutput", {}).get(_LAST_LINE, "")
    node.config.stash.setdefault(_last_lines, set()).add(said)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Says which Kubernetes plugin the engine's tests ran with, if any did."""
    for line in sorted({*config.stash.get(_last_lines, set()), plugin_line()} - {""}):
        terminalreporter.write_line(line)
