"""The hospital's pages in a real browser: narrow and wide, dark, by keyboard, without JavaScript, and the viewer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from client.consent.decisions import DecisionBook
from client.web.jobs import Jobs, Work
from client.web.pictures import write_png
from client.web.place import Place
from client.web.side import hospital_side
from common.web.listening import Listening
from common.web.serve import served
from tests import kits
from tests.browser import WIDTHS, barriers, browser, opened, overflow, sign_in, tab_to
from tests.client.ledger.test_ledger import ROUND, budget, patients
from tests.client.web.test_scans import NAMES, REPORT, RESULT
from tests.client.web.test_trail import leave

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]

A4 = 794
"""Pixels across a sheet of paper."""


@dataclass(frozen=True)
class Hospital:
    """A site with something on every page, served, and the link to act."""

    place: Place
    link: str

    @property
    def address(self) -> str:
        return self.link.partition("/sign-in")[0]

    def book(self) -> DecisionBook:
        return DecisionBook(self.place.state, self.place.consent)


@pytest.fixture
def hospital(place: Place, tmp_path: Path) -> Iterator[Hospital]:
    leave(place, 3)
    budget(place.ledger, patients("a", "b"), state=place.state).spend("r1", 1, ROUND)
    (place.state / "logs" / "runner.log").write_text("a line of the log\n" * 30, encoding="utf-8")
    folder = tmp_path / "pictures"
    (folder / "scan").mkdir(parents=True)
    picture = np.full((40, 30, 3), 90, np.uint8)
    for file in (folder / "0.png", folder / "scan" / "sheet.png"):
        write_png(file, picture)
    ball = (np.linalg.norm(np.indices((16, 20, 12)).T - (8, 10, 6), axis=-1).T < 5).astype(np.uint8)
    image = ball + 2.0 * (np.indices(ball.shape)[0] >= 8)  # the patient's right is brighter
    for name, values in (("image", image.astype(np.float32)), ("truth", ball), ("prediction", np.roll(ball, 2, 0))):
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / "scan" / f"{name}.nii.gz")
    jobs = Jobs(tmp_path / "page.log")
    for kind, about, result in (
        ("cases", {}, NAMES),
        ("segment", {"case": NAMES[0]}, RESULT),
        ("check", {}, REPORT),
        ("preflight", {}, [{"name": "disk", "severity": "error", "text": "full"}]),
    ):
        jobs._last[kind] = Work(kind, about, result=result, has_ended=True)
    place = dataclasses.replace(place, data=tmp_path / "scans")
    said: list[str] = []
    with served(hospital_side(place, jobs, folder), Listening("127.0.0.1", 0), said.append):
        yield Hospital(place, said[0].split()[-1])


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_have_no_barriers_and_ask_nobody_else(browser: Browser, hospital: Hospital, width: int) -> None:
    scheme = "dark" if width == WIDTHS[0] else "light"
    with opened(browser, hospital.address, width, color_scheme=scheme) as page:
        sign_in(page, hospital.link)
        for path in ("/", "/sent", "/privacy", "/live", "/data", "/scans"):
            page.goto(f"{hospital.address}{path}")
            page.wait_for_load_state("load")
            assert overflow(page) <= 0, path
            assert barriers(page) == [], path


def test_nothing_is_cut_off_on_paper(browser: Browser, hospital: Hospital) -> None:
    with opened(browser, hospital.address, A4) as page:
        sign_in(page, hospital.link)
        page.emulate_media(media="print")
        for path in ("/", "/sent", "/privacy", "/data"):
            page.goto(f"{hospital.address}{path}")
            assert overflow(page) <= 0, path


def test_a_federation_is_approved_by_keyboard_alone(browser: Browser, hospital: Hospital) -> None:
    with opened(browser, hospital.address) as page:
        sign_in(page, hospital.link)
        tab_to(page, "#name")
        page.keyboard.type("Dr. Keyboard")
        page.keyboard.press("Enter")
        assert not hospital.book().read().approvals, "nobody approves what they have not ticked"
        tab_to(page, "#read")
        page.keyboard.press("Space")
        tab_to(page, "#approve")
        page.once("dialog", lambda dialog: dialog.accept())
        page.keyboard.press("Enter")
        page.get_by_text("is approved by Dr. Keyboard").wait_for()
    (approval,) = hospital.book().read().approvals
    assert approval.user.startswith("Dr. Keyboard (link")


def test_deciding_works_without_javascript(browser: Browser, hospital: Hospital) -> None:
    kits.approve(hospital.place.kit, hospital.place.state, hospital.place.consent)
    with opened(browser, hospital.address, WIDTHS[0], java_script_enabled=False) as page:
        sign_in(page, hospital.link)
        page.locator("#withdraw").click()
        page.get_by_text("Only a new approval ends that").wait_for()
        assert hospital.book().read().withdrawn
        page.goto(f"{hospital.address}/scans/0")
        assert page.locator("img.sheet").evaluate("picture => picture.naturalWidth") == 30
        assert not page.locator(".viewer").is_visible()


def test_what_is_decided_elsewhere_is_shown_at_once(browser: Browser, hospital: Hospital) -> None:
    with opened(browser, hospital.address) as page:
        sign_in(page, hospital.link)
        page.locator("#news.on").wait_for()
        page.locator("#name").fill("half a na")
        hospital.book().pause("Dr. Elsewhere")
        page.get_by_text("Paused by Dr. Elsewhere").wait_for()
        assert page.locator("#name").input_value() == "half a na"


def test_the_viewer_shows_the_scan_and_asks_nobody_else(browser: Browser, hospital: Hospital) -> None:
    with opened(browser, hospital.address) as page:
        sign_in(page, hospital.link)
        page.goto(f"{hospital.address}/scans/0")
        page.locator(".viewer[data-ready]").wait_for()
        before = page.locator("canvas").screenshot()
        page.locator("[name=truth]").uncheck()
        page.locator("[name=prediction]").uncheck()
        page.locator("[name=view]").select_option("0")
        alone = page.locator("canvas").screenshot()
        assert alone != before
        left, right = np.array_split(imread(BytesIO(alone))[..., :3].mean(axis=2), 2, axis=1)
        assert left.mean() > right.mean(), "the patient's right is on the left, as in the slices"
        assert barriers(page) == []
