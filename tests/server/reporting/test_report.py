from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from common.errors import FedvoxError
from server.formatting import format_bytes, format_seconds
from server.reporting.report import MOST_BYTES_OF_PICTURES, write_report
from server.reporting.slices import draw_case, label_colour
from server.run_store.record import Example
from server.run_store.record_reader import read_run
from tests.server.run_folder import (
    round_line,
    structures,
    write_example,
    write_examples,
    write_json_lines,
    write_run_folder,
)

VOID = {"meta", "link", "br", "img", "path", "use", "line", "rect"}


class Page(HTMLParser):
    """Collects what a browser would see: visible text, elements with attributes, and tags left open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, first: str) -> list[str]:
        """The cells of the first table row that starts with ``first``."""
        cells = ([" ".join(cell.split()) for cell in row] for row in self.rows)
        return next(row for row in cells if row and row[0] == first)


def report(folder: Path) -> Page:
    return Page(write_report(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = write_run_folder(tmp_path_factory.mktemp("runs") / "finished")
    write_examples(folder)
    return report(folder)


def test_page_is_whole_and_needs_nothing_else(finished: Page) -> None:
    assert finished.open == []
    assert "http" not in finished.source
    assert {tag for tag, _ in finished.elements}.isdisjoint({"script", "iframe", "object", "embed", "base"})
    addresses = [attributes.get(key) for _, attributes in finished.elements for key in ("src", "href", "xlink:href")]
    assert all(address.startswith(("data:", "#")) for address in addresses if address)
    assert not re.search(r"url\((?!#)|@import", finished.source)
    assert len(finished.source) < 2_000_000


def test_identifiers_are_unique_and_references_meet_them(finished: Page) -> None:
    identifiers = [attributes["id"] for _, attributes in finished.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    used = re.findall(r"url\(#([^)]*)\)", finished.source) + re.findall(r'href="#([^"]*)"', finished.source)
    assert used
    assert set(used) <= set(identifiers)


def test_figures_take_their_colours_from_the_page(finished: Page) -> None:
    figures = re.findall(r"<svg viewBox.*?</svg>", finished.source, re.DOTALL)
    assert len(figures) >= 2
    for figure in figures:
        assert set(re.findall(r"(?:stroke|fill): (#\w+)", figure)) == set()
    assert "prefers-color-scheme: dark" in finished.source
    assert "@media print" in finished.source


def test_headline_says_what_was_reached_and_what_it_cost(finished: Page) -> None:
    assert "hippocampus Finished All rounds are complete." in finished.text
    assert "Best mean Dice 0.871" in finished.text
    assert "Released model round 10" in finished.text
    assert "Rounds 10 of 10" in finished.text
    assert "Time 7 min 37 s" in finished.text
    assert "168 MB from the sites, 185 MB to them" in finished.text


def test_site_table_holds_the_spread_over_cases(finished: Page, tmp_path: Path) -> None:
    run = read_run(write_run_folder(tmp_path / "run"))
    scores = [case.metrics["dice"] for case in run.cases if (case.site, case.label) == ("uint8", 2)]
    expected = (
        f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f} "
        f"median {np.median(scores):.3f}, worst {np.min(scores):.3f}"
    )
    row = finished.row("uint8")
    assert row[1:4] == ["37", "9", "stored intensities of the group uint8"]
    assert row[5] == expected
    assert finished.row("All sites")[1:3] == ["177", "43"]


def test_other_measures_are_medians_and_say_where_they_are_undefined(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    header = "site,case,label,label_name,dice,hd95_mm,assd_mm,nsd_at_1mm,volume_error\n"
    rows = "".join(f"uint8,c{n},1,anterior,0.9,{hd},1.0,0.9,-0.25\n" for n, hd in enumerate(("1.0", "2.0", "6.0", "")))
    folder.joinpath("validation.csv").write_text(header + rows + "uint8,c9,1,anterior,0.9,inf,1,1,nan\n")
    page = report(folder)
    row = next(row for row in page.rows if row[0].strip() == "anterior" and len(row) == 6)
    assert " ".join(row[2].split()) == "2.00 1.50 to 4.00 undefined in 2"
    assert " ".join(row[5].split()) == "−0.250 −0.250 to −0.250 undefined in 1"


def test_pooled_training_is_compared(finished: Page, tmp_path: Path) -> None:
    assert finished.row("mean")[1:] == ["0.871", "0.882", "−0.011"]
    folder = write_run_folder(tmp_path / "alone")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"pooled": None}))
    assert "pooled" not in report(folder).text


def test_both_times_are_stated(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    pooled = summary["pooled"] | {"seconds": 125.0, "mean_dice": summary["best_mean_dice"] + 0.0001}
    (folder / "summary.json").write_text(json.dumps(summary | {"pooled": pooled}))
    page = report(folder)
    assert "of all federated rounds; pooled training took another 2 min 05 s" in page.text
    assert "Time of pooled training" in page.text
    assert page.row("mean")[-1] == "0.000", "a difference that rounds to nothing has no sign"


def test_best_and_worst_cases_are_drawn_in_order(finished: Page) -> None:
    pictures = [attributes["alt"] for tag, attributes in finished.elements if tag == "img"]
    assert [re.search(r"(\S+) with", alt or "")[1] for alt in pictures] == [  # type: ignore[index]
        "raw-low_000",
        "uint8_001",
        "raw-high_002",
        "raw-low_003",
    ]
    assert finished.text.index("Best cases") < finished.text.index("Worst cases")


def test_timing_is_split_by_site(finished: Page) -> None:
    assert finished.row("raw-low")[:3] != []
    row = next(row for row in finished.rows if len(row) == 8 and row[0].strip() == "uint8")
    assert [" ".join(cell.split()) for cell in row[1:6]] == ["11 s", "0.2 s", "8.5 s", "1.8 s", "0.5 s"]
    assert row[7] == "1 min 50 s"


def test_sites_that_were_not_counted_are_listed_with_their_reason(finished: Page, tmp_path: Path) -> None:
    assert "Every site took part in every round." in finished.text
    folder = write_run_folder(tmp_path / "run", rounds=5)
    lines = [round_line(number, 5) for number in range(1, 7)]
    for number in (1, 3, 4):
        lines[number - 1]["sites"]["uint8"] = {"status": "refused", "reason": "not-finite", "examples": 37}
    lines[4]["sites"]["raw-high"] = {"status": "missing", "reason": None}
    write_json_lines(folder / "rounds.jsonl", lines)
    page = report(folder)
    assert ["uint8", "refused", "not-finite", "1, 3–4"] in [[cell.strip() for cell in row] for row in page.rows]
    assert ["raw-high", "missing", "no reason given", "5"] in [[cell.strip() for cell in row] for row in page.rows]


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>$\\frac$'
    folder = write_run_folder(tmp_path / "run", rounds=5, sites=(evil, "_plain"))
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"name": "<b>&", "labels": {"1": "<i>$x^$", "2": "]]>"}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "federation.yaml").write_text("description: '</pre><script>'\n")
    page = report(folder)
    assert page.open == []
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    assert page.row(evil)[1] == "117"
    assert page.row("_plain")[1] == "37"
    assert "<b>&" in page.text
    assert "<i>$x^$" in page.text


def test_unfinished_run_says_so_and_shows_what_is_complete(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", rounds=6)
    for name in ("summary.json", "validation.csv"):
        (folder / name).unlink()
    (folder / "examples").rmdir()
    text = "".join(json.dumps(round_line(number, 6)) + "\n" for number in (1, 2, 3, 4))
    (folder / "rounds.jsonl").write_text(text[:-200])
    page = report(folder)
    assert "Not finished" in page.text
    assert "Rounds 3 of 6" in page.text
    assert "Best model so far round 2" in page.text
    assert "The last line of rounds.jsonl is incomplete" in page.text
    assert page.row("raw-low")[4:] == ["0.624", "0.614"]
    assert "Best and worst" not in page.text


def test_interrupted_run_says_so(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", rounds=3)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "interrupted", "rounds_done": 2}))
    page = report(folder)
    assert "Interrupted" in page.text
    assert "--resume" in page.text
    assert "Rounds 2 of 3" in page.text


@pytest.mark.parametrize("mark", ["federation.yaml", "rounds.jsonl", "summary.json"])
def test_a_run_that_has_barely_begun_has_a_report(tmp_path: Path, mark: str) -> None:
    folder = tmp_path / "barely"
    folder.mkdir()
    (folder / mark).write_text("")
    page = report(folder)
    assert page.open == []
    assert "barely" in page.text
    assert "No round is complete yet" in page.text


def test_damaged_files_become_notes(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", rounds=3)
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    lines[1] = "{broken"
    lines.append('{"round": "four"}')
    (folder / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "plan.json").write_text('{"channels": []}')
    (folder / "partition.json").write_text("[1, 2]")
    (folder / "validation.csv").write_text("site,case,label,label_name,dice\nuint8,c1,one,anterior,0.9\n")
    example = write_example(folder, "uint8", 0, "best", 0.9)
    example.write_bytes(example.read_bytes()[:1000])
    page = report(folder)
    assert page.open == []
    for note in (
        "Line 2 of rounds.jsonl",
        "no round number",
        "plan.json is invalid",
        "partition.json is invalid",
        "Line 2 of validation.csv",
        "examples/best_0.npz could not be read",
    ):
        assert note in page.text
    assert page.row("uint8")[1:3] == ["37", "9"]  # from the rounds, as the partition cannot be read


def test_a_number_that_was_changed_becomes_a_note(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", rounds=3)
    assert "was changed" not in report(folder).text
    text = (folder / "rounds.jsonl").read_text()
    (folder / "rounds.jsonl").write_text(text.replace("0", "1", 1))
    assert "rounds.jsonl: was changed or cut" in report(folder).text
    (folder / "state.json").unlink()
    assert "state.json: is missing, although the run has begun (rounds.jsonl)" in report(folder).text


def test_not_a_number_counts_as_unknown(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", rounds=3)
    text = (folder / "rounds.jsonl").read_text()
    (folder / "rounds.jsonl").write_text(re.sub(r'"(mean_dice|train_loss|seconds)": [\d.-]+', r'"\1": NaN', text))
    page = report(folder)
    assert page.open == []
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize("contents", [[], ["notes.txt", "plan.json"]])
def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path, contents: list[str]) -> None:
    for name in contents:
        (tmp_path / name).write_text("{}")
    with pytest.raises(FedvoxError, match=re.escape(f"{tmp_path}: not the folder of a run")):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(FedvoxError, match="does not exist"):
        write_report(tmp_path / "missing")


def test_report_is_replaced_whole_and_reproducible(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", rounds=3)
    path = write_report(folder)
    first = path.read_bytes()
    path.write_text("old")
    assert write_report(folder).read_bytes() == first
    assert sorted(entry.name for entry in folder.iterdir() if entry.name.startswith(".")) == []


def test_many_sites_and_rounds_stay_small(tmp_path: Path) -> None:
    sites = [f"site-{index:02d}" for index in range(40)]
    page = report(write_run_folder(tmp_path / "run", rounds=150, sites=sites))
    assert page.open == []
    assert len(page.source) < 2_000_000


def test_a_site_keeps_its_colour_in_all_figures(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", rounds=3)
    lines = [round_line(number, 3) for number in range(1, 5)]
    for line in lines:
        line["sites"].pop("raw-low")  # the first site never answers; the others must not move up to its colour
    write_json_lines(folder / "rounds.jsonl", lines)
    page = report(folder)
    swatches = set(re.findall(r'<use href="#(swatch-\w+)"/></svg>\s*([\w-]+)', page.source))
    assert swatches == {
        ("swatch-0", "raw-low"),
        ("swatch-1", "uint8"),
        ("swatch-2", "raw-high"),
        ("swatch-mean", "mean"),
    }
    symbols = re.findall(r'<symbol id="swatch-(\d)"(.*?)</symbol>', page.source, re.DOTALL)
    assert len(symbols) == 3
    for number, symbol in symbols:
        assert set(re.findall(r"--site-(\d)", symbol)) == {number}
    figures = re.findall(r'<div class="figure scroll">(.*?)</div>', page.source, re.DOTALL)
    assert len(figures) == 2
    for figure in figures:
        # The marker of a site that has no value is not drawn.
        assert set(re.findall(r"<use[^>]*--site-(\d)", figure)) == {"1", "2"}


def picture(example: Example) -> np.ndarray:
    data = draw_case(example)
    assert data.startswith("data:image/png;base64,")
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(data.split(",")[1])), format="png")[..., :3]


def extent_of_colour(image: np.ndarray, colour: str) -> tuple[float, float]:
    """Width and height in pixels of what is drawn in about this colour."""
    wanted = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    rows, columns = np.nonzero(np.abs(image - wanted).max(axis=-1) < 0.15)
    return float(np.ptp(columns)), float(np.ptp(rows))


def test_slices_have_the_aspect_of_the_body_not_of_the_voxels() -> None:
    # A cube of 24 mm in voxels of 1 x 1 x 6 mm: a square in every plane.
    truth = np.zeros((60, 60, 10), np.uint8)
    truth[18:42, 18:42, 3:7] = 1
    image = np.random.default_rng(0).normal(0, 1, truth.shape).astype(np.float32)
    drawn = picture(Example("site", "case", "best", 1.0, image, truth, np.zeros_like(truth), (1.0, 1.0, 6.0)))
    third = drawn.shape[1] // 3
    for plane in (drawn[:, :third], drawn[:, third : 2 * third], drawn[:, 2 * third :]):
        width, height = extent_of_colour(plane, label_colour(1))
        assert width == pytest.approx(height, rel=0.06)
        assert height > 60


def test_patients_right_is_drawn_on_the_left() -> None:
    truth = np.zeros((40, 40, 40), np.uint8)
    truth[10:30, 10:30, 10:30] = 1
    image = np.zeros(truth.shape, np.float32)
    image[26:] = 1  # x grows towards the patient's right
    drawn = picture(Example("site", "case", "best", 1.0, image, truth, truth, (1.0, 1.0, 1.0)))
    axial = drawn[:, 2 * drawn.shape[1] // 3 :].mean(axis=-1)
    middle = axial.shape[1] // 2
    assert axial[:, :middle].mean() > 2 * axial[:, middle:].mean()


@pytest.mark.parametrize("empty", ["truth", "prediction", "both"])
def test_cases_with_nothing_to_outline_are_drawn(empty: str) -> None:
    labels, nothing = structures((35, 51, 35)), np.zeros((35, 51, 35), np.uint8)
    truth = nothing if empty in ("truth", "both") else labels
    prediction = nothing if empty in ("prediction", "both") else labels
    drawn = picture(Example("s", "c", "worst", None, np.zeros(labels.shape, np.float32), truth, prediction, (1, 1, 1)))
    assert drawn.ndim == 3


def test_pictures_of_noise_do_not_swell_the_page(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", rounds=2)
    truth = np.zeros((120, 120, 120), np.uint8)
    truth[2:118, 2:118, 2:118] = 1
    image = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    single = len(draw_case(Example("uint8", "c0", "worst", 0.5, image, truth, truth, (1.0, 1.0, 1.0))))
    for index in range(3):
        meta = json.dumps({"site": "uint8", "case": f"c{index}", "mean_dice": 0.5, "kind": "worst"})
        path = folder / "examples" / f"worst_{index}.npz"
        np.savez(path, image=image, truth=truth, prediction=truth, spacing=np.ones(3), meta=np.array(meta))
    page = report(folder)
    assert sum(tag == "img" for tag, _ in page.elements) == 3
    assert (
        3 * single
        > MOST_BYTES_OF_PICTURES
        > sum(len(attributes["src"] or "") for tag, attributes in page.elements if tag == "img")
    )


def test_planes_go_through_a_bent_structure() -> None:
    # A hoop around the x axis: its centroid is in the hole.
    y, z = np.indices((41, 41)) - 20.0
    hoop = np.zeros((9, 41, 41), np.uint8)
    hoop[3:6] = (np.hypot(y, z) > 12) & (np.hypot(y, z) < 16)
    drawn = picture(Example("s", "c", "best", 1.0, np.zeros(hoop.shape, np.float32), hoop, hoop, (1.0, 1.0, 1.0)))
    third = drawn.shape[1] // 3
    for plane in (drawn[:, :third], drawn[:, third : 2 * third], drawn[:, 2 * third :]):
        assert extent_of_colour(plane, label_colour(1)) > (0, 0)


def test_examples_beyond_the_first_few_are_left_out(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", rounds=2)
    for index in range(10, 16):
        write_example(folder, "uint8", index, "best", 0.5 + index / 100)
    page = report(folder)
    assert sum(tag == "img" for tag, _ in page.elements) == 3
    assert "uint8_010" not in page.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (86, "1 min 26 s"), (7500, "2 h 05 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1200, "1.2 kB"), (168e6, "168 MB"), (999.9e6, "1.0 GB"), (5e15, "5000.0 TB")],
)
def test_sizes_read_well(size: float, text: str) -> None:
    assert format_bytes(size) == text
