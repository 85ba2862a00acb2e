"""A real browser for tests of pages: Debian's Chromium, driven by Playwright, and axe-core to judge accessibility."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

WIDTHS = (360, 1440)
HARMLESS = ("htmx:sendAbort", "htmx:afterRequest", "GL Driver Message (OpenGL, Performance")
"""Said by a page that is left while it asks for news, and by drawing without a GPU."""
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests of a process."""
    if shutil.which("chromium") is None:
        if os.environ.get("FEDVOX_REQUIRE_BROWSER") == "1":
            pytest.fail("chromium is missing: make browser-tools")
        pytest.skip("chromium is missing: make browser-tools")
    with launched() as started:
        yield started


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser that ends with the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, as in containers, Chromium starts only without its sandbox; it sees nothing but our own pages.
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(browser: Browser, address: str, width: int = 1440, **options: Any) -> Iterator[Page]:
    """A window of its own on the pages at an address; at the end, nothing was complained about or asked of others."""
    context = browser.new_context(viewport={"width": width, "height": 900}, locale="en-GB", **options)
    context.set_default_timeout(60_000)
    page, problems = context.new_page(), []

    def note(said: ConsoleMessage) -> None:
        if said.type in ("error", "warning") and not any(part in said.text for part in HARMLESS):
            problems.append(said.text)

    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(f"{address}/") else problems.append(asked.url))
    try:
        yield page
    finally:
        context.close()
    assert not problems, problems


def sign_in(page: Page, link: str) -> None:
    """Follow a link for signing in."""
    page.goto(link)
    page.get_by_role("button").click()
    page.wait_for_url("**/runs/*" if "/runs/" in page.url else lambda url: "/sign-in" not in url)


def barriers(page: Page) -> list[str]:
    """What axe-core finds serious or critical on a page: rule and element."""
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("rules => axe.run({runOnly: rules})", RULES)["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def overflow(page: Page) -> int:
    """By how many pixels a page is wider than its window."""
    return int(page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def tab_to(page: Page, element: str, most: int = 60) -> None:
    """Press the tab key until the element with this selector has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("wanted => document.activeElement.matches(wanted)", element):
            return
    raise AssertionError(f"no way to {element} by keyboard")
