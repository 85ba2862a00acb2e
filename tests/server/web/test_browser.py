"""The coordinator's pages in a real browser: narrow and wide, by keyboard, live, and without JavaScript."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from common.web.listening import Listening
from common.web.serve import served
from server.run_store.live_status import write_network_status
from server.run_store.locks import only_start
from server.web.side import server_side
from tests.browser import WIDTHS, barriers, opened, overflow, sign_in, tab_to
from tests.server.run_folder import SITES, write_run_folder
from tests.server.web.runs import network_status, write_live_run
from tests.server.web.test_pages import write_comparison

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@dataclass(frozen=True)
class Pages:
    """Two runs, served: the folder of the live one, and the link to act."""

    live: Path
    link: str

    @property
    def address(self) -> str:
        return self.link.partition("/sign-in")[0]


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    runs = [
        write_live_run(tmp_path / "live"),
        write_run_folder(tmp_path / "done"),
        write_comparison(tmp_path / "compared"),
    ]
    said: list[str] = []
    with only_start(runs[0]), served(server_side(runs), Listening("127.0.0.1", 0), said.append):
        yield Pages(runs[0], said[0].split()[-1])


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_have_no_barriers_and_ask_nobody_else(browser: Browser, pages: Pages, width: int) -> None:
    scheme = "dark" if width == WIDTHS[0] else "light"
    with opened(browser, pages.address, width, color_scheme=scheme) as page:
        page.goto(pages.link)
        assert barriers(page) == []
        sign_in(page, pages.link)
        for path in ("/", "/runs/0", "/runs/0/rounds", "/runs/1", "/comparisons/0"):
            page.goto(f"{pages.address}{path}")
            page.wait_for_load_state("load")
            for number in range(page.locator("[data-curves]").count()):
                page.locator("[data-curves]").nth(number).locator("canvas").wait_for()
            assert overflow(page) <= 0, path
            assert barriers(page) == [], path
        page.goto(f"{pages.address}/runs/0")
        page.locator("#curves-dice canvas").wait_for()
        page.emulate_media(media="print")
        # Drawn again, for paper is white whatever the screen is, and colours alone do not tell sites apart there.
        assert page.locator("canvas:visible").count() == 0
        assert page.locator(".drawing > svg:visible").count() == 3
        assert page.locator(".drawing .legend:visible").first.inner_text().split() == [*SITES, "all", "sites"]
        ink = page.locator(".drawing .c-mean").first.evaluate("line => getComputedStyle(line).stroke")
        assert ink == "rgb(27, 31, 36)"


def test_a_site_is_released_by_keyboard_alone(browser: Browser, pages: Pages) -> None:
    with opened(browser, pages.address) as page:
        page.goto(pages.link)
        tab_to(page, "main button")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Runs").wait_for()
        tab_to(page, "main a")
        page.keyboard.press("Enter")
        page.wait_for_url("**/runs/0")
        tab_to(page, "#release-3")
        asked: list[str] = []
        page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
        page.keyboard.press("Enter")
        page.get_by_text("raw-high takes part again").wait_for()
        assert asked == ["Let raw-high take part again from the next round?"]
    assert len(list((pages.live / "releases").iterdir())) == 1


def test_what_changes_is_shown_and_the_focus_stays(browser: Browser, pages: Pages) -> None:
    with opened(browser, pages.address) as page:
        sign_in(page, pages.link)
        page.goto(f"{pages.address}/runs/0")
        page.locator("#news.on").wait_for()
        page.locator("#curves-loss canvas").wait_for()
        page.locator("#write-report").focus()
        page.evaluate("() => { window.sameWindow = true; }")
        write_network_status(pages.live, network_status(list(SITES), 7, step=31))
        page.get_by_text("step 31 of 40").first.wait_for()
        assert page.evaluate("() => document.activeElement.id") == "write-report"
        assert page.evaluate("() => window.sameWindow")
        assert page.locator("[data-curves] canvas").count() == 3
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
        write_network_status(pages.live, network_status(list(SITES), 7, step=32))
        page.get_by_text("step 32 of 40").first.wait_for()
        assert asked == ["0"], "curves that have not changed are not fetched again"


def test_all_of_it_works_without_javascript(browser: Browser, pages: Pages) -> None:
    with opened(browser, pages.address, WIDTHS[0], java_script_enabled=False) as page:
        page.goto(pages.link)
        page.get_by_role("button").click()
        page.goto(f"{pages.address}/runs/0?lang=de")
        assert page.locator("svg polyline").count() == 4 + 4 + 3
        assert page.locator(".drawing:visible").count() == 3
        assert page.locator("[data-curves]:visible").count() == 0
        page.locator("#release-3").click()
        page.get_by_text("raw-high nimmt ab der nächsten Runde wieder teil").wait_for()
