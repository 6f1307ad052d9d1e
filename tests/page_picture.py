"""`python -m tests.page_picture URL > docs/page.png`: the page of a running stack as it answers."""

from __future__ import annotations

import sys

from playwright.sync_api import sync_playwright

from tests.e2e.browser_page import CHROMIUM_OPTIONS, RECOVERY_MS, ask, open_page, written
from tests.programs import program

SIZE = {"width": 1280, "height": 900}
SPEED_MS = 6000  # until the chart has something to show


def main() -> int:
    with sync_playwright() as playwright:
        path = program("chromium")
        browser = playwright.chromium.launch(
            executable_path=path and str(path), args=list(CHROMIUM_OPTIONS)
        )
        settings = {"temperature": 0.3, "seed": 1}
        with open_page(browser, sys.argv[1].rstrip("/"), settings=settings, viewport=SIZE) as page:
            ask(page, "What is photosynthesis?")
            page.get_by_role("button", name="Send").wait_for(timeout=RECOVERY_MS)
            ask(page, "Give me three tips for sleeping well.")
            written(page, 200)
            page.wait_for_timeout(SPEED_MS)
            sys.stdout.buffer.write(page.screenshot())
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
