"""A written page in a real Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = (1280, 900), (390, 844)
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless; the test is skipped where there is none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not start as root, which CI and containers are.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """An opened page, and what it said on the console or asked of the network."""

    def __init__(
        self, browser: Browser, file: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light"
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce",
        )
        self.page: Page = self.context.new_page()
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", self._refuse)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def _refuse(self, dialog: Dialog) -> None:
        self.faults.append("dialog")
        dialog.dismiss()

    def close(self) -> None:
        """End the visit; proves that nothing went wrong in it and nothing was loaded."""
        outside = [u for u in self.requests if not u.startswith(("file:", "data:"))]
        self.context.close()
        assert self.faults == []
        assert outside == []


def assert_accessible(page: Page, context: str | None = None) -> None:
    """axe finds nothing against WCAG 2.2 AA and its own best practice, in all of it or a part."""
    found = Axe().run(page, context=context, options=RULES)
    assert found.violations_count == 0, found.generate_report()
