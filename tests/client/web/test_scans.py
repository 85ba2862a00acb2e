"""Scans are for signed-in people, by number, and never kept by a browser."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import client.web as client_web
from client.web.jobs import Jobs, Work
from client.web.pictures import COLOURS
from client.web.place import Place
from client.web.side import hospital_side
from common.web.shell import Address, Shell
from common.web.visits import Role
from tests.client.web.hospital import do, words
from tests.common.web.side import HOST, SAME_ORIGIN, browser, csrf_of, signed_in

RESULT = {
    "received": "2026-01-05T09:07:37+00:00",
    "model": "a" * 64,
    "labels": {"1": '"><b>'},
    "dice": {'"><b>': 0.5},
    "slices": [3, 4],
    "size": [20, 30],
}
REPORT = {
    "pictures": [{"case": "<i>odd", "number": 0, "size": [5, 6], "problem": "<i>bad"}],
    "problems": [],
    "cases": [],
    "labels": {},
    "usable": False,
    "patients": None,
    "layout": "files",
    "studies": [],
}
NAMES = ["case <i>0", "case 1"]


@pytest.fixture
def shell(place: Place, tmp_path: Path) -> Shell:
    """A page that has listed two scans and segmented the first."""
    folder = tmp_path / "pictures"
    (folder / "scan").mkdir(parents=True)
    for name in ("image.nii.gz", "truth.nii.gz", "prediction.nii.gz", "sheet.png"):
        (folder / "scan" / name).write_bytes(name.encode())
    (folder / "0.png").write_bytes(b"picture")
    jobs = Jobs(tmp_path / "page.log")
    for kind, request, result in (
        ("cases", {}, NAMES),
        ("segment", {"case": NAMES[0]}, RESULT),
        ("check", {}, REPORT),
        ("preflight", {}, [{"name": "disk", "severity": "error", "text": "<i>full"}]),
    ):
        jobs._last[kind] = Work(kind, request, result=result, has_ended=True)
    place = dataclasses.replace(place, data=tmp_path / "scans")
    return Shell(hospital_side(place, jobs, folder), Address((HOST,), 8750))


@pytest.fixture
def client(shell: Shell) -> TestClient:
    return signed_in(shell, Role.LOOK)


def test_volumes_are_given_to_who_has_signed_in_and_not_kept(shell: Shell, client: TestClient) -> None:
    for path in ("/scans/0/image.nii.gz", "/scans/0/truth.nii.gz", "/scans/0/prediction.nii.gz", "/scans/0/sheet.png"):
        answer = client.get(path)
        assert answer.content == path.rpartition("/")[2].encode()
        assert answer.headers["cache-control"] == "no-store"
        refused = browser(shell).get(path)
        assert (refused.status_code, refused.headers["location"]) == (303, "/sign-in")
    assert client.get("/data/pictures/0").content == b"picture"
    assert browser(shell).get("/data/pictures/0").status_code == 303


@pytest.mark.parametrize(
    "path",
    [
        *("/scans/1/image.nii.gz", "/scans/2/image.nii.gz", "/scans/-1/image.nii.gz", "/scans/2", "/scans/case 1"),
        *("/scans/0/model.nii.gz", "/scans/0/..%2F..%2Fetc.nii.gz", "/scans/0/%2e%2e/sheet.png", "/scans/..%2f0"),
        *("/data/pictures/1", "/data/pictures/-1", "/data/pictures/..%2F0.png", "/scans/0/image.nii.gz%00"),
    ],
)
def test_nothing_else_is_given(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_names_and_labels_are_text_and_only_the_viewer_may_make_pictures(client: TestClient) -> None:
    pages = {path: client.get(path) for path in ("/scans", "/scans/0", "/scans/1", "/data", "/")}
    for path, page in pages.items():
        assert page.status_code == 200
        assert "<i>" not in page.text and '"><b>' not in page.text
        assert ("data:" in page.headers["content-security-policy"]) == (path in ("/scans/0", "/scans/1"))
        assert "unsafe" not in page.headers["content-security-policy"]
    assert "case <i>0" in words(pages["/scans"]) and "<i>odd" in words(pages["/data"])
    assert "Dice of" in words(pages["/scans/0"]) and "has not been segmented" in words(pages["/scans/1"])
    assert "disk error <i>full" in words(pages["/data"])


def test_who_may_only_look_starts_nothing(shell: Shell, client: TestClient) -> None:
    form = {"csrf": csrf_of(client)}
    for action in ("/data/check", "/data/preflight", "/scans/find", "/scans/0/segment"):
        assert client.post(action, data=form, headers=SAME_ORIGIN).status_code == 403
    acts = signed_in(shell, Role.ACT)
    assert acts.post("/scans/7/segment", data={"csrf": csrf_of(acts)}, headers=SAME_ORIGIN).status_code == 404


def test_without_a_dataset_folder_actions_say_so(place: Place, tmp_path: Path) -> None:
    page = Shell(hospital_side(place, Jobs(tmp_path / "log"), tmp_path), Address((HOST,), 8750))
    acts = signed_in(page, Role.ACT)
    assert "Start it with --data DIR" in words(acts.get("/data"))
    for path in ("/data/check", "/data/preflight", "/scans/find"):
        assert "Not done: there is no dataset folder" in do(acts, path)


def test_the_legend_has_the_colours_of_the_pictures() -> None:
    style = (Path(client_web.__file__).parent / "static" / "hospital.css").read_text(encoding="utf-8")
    for number, colour in enumerate(COLOURS[1:].tolist(), 1):
        assert f".l-{number} {{ background: rgb({' '.join(map(str, colour))}); }}" in style
