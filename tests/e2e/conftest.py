from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.browser_page import CHROMIUM_OPTIONS, open_page
from tests.e2e.local_stack import LocalStack
from tests.e2e.whole_stack import WholeStack
from tests.programs import program
from tests.waiting import PATIENCE_S

# Where a test does not say how long: playwright's own 5 s are soon over on a busy machine.
expect.set_options(timeout=PATIENCE_S * 1000)


@pytest.fixture(scope="session")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Two ranks and every tier in front of them."""
    with LocalStack(tmp_path_factory.mktemp("project"), ranks=2) as stack:
        yield stack


@pytest.fixture(scope="session")
def whole_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeStack]:
    """The same tiers of a spec file each, for tests that ask and change nothing."""
    with WholeStack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(program("chromium")), args=list(CHROMIUM_OPTIONS)
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, local_stack: LocalStack) -> Iterator[Page]:
    """The page, ready; answers are short."""
    settings = {"max_completion_tokens": 24}
    with open_page(browser, local_stack.url, settings=settings) as page:
        yield page
