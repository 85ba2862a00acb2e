"""The coordinator's pages: what they show, what they refuse, and the actions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import server.web
from common.audit import verify
from common.errors import FedvoxError
from common.protocol.messages import ErrorCode, Refusal
from common.web.shell import Address, Shell
from common.web.texts import load_texts
from common.web.visits import Role
from server.run_store.folder import AUDIT_FILE, RunFolder
from server.run_store.live_status import NetworkStatus, write_network_status
from server.run_store.locks import only_start
from server.web.side import check_folders, names_apart, server_side
from tests.common.web.gate import written
from tests.common.web.side import HOST, SAME_ORIGIN, csrf_of, signed_in
from tests.server.run_folder import SITES, write_examples, write_run_folder
from tests.server.web.runs import network_status, write_live_run

EVIL = '<script>alert("x")</script>\x1b[31m'


def visitor(*runs: Path, role: Role = Role.LOOK) -> TestClient:
    return signed_in(Shell(server_side(runs), Address((HOST,), 8750)), role)


def text_of(client: TestClient, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return " ".join(re.sub(r"<[^>]*>", " ", answer.text).split())


@pytest.fixture
def live(tmp_path: Path) -> Path:
    return write_live_run(tmp_path / "live")


def test_a_run_in_progress_is_shown_with_its_sites(live: Path) -> None:
    with only_start(live):
        page = text_of(visitor(live), "/runs/0")
    for part in (
        *SITES,
        "running round 7 of 12",
        "6 / 12",
        "0.871 after round 6 (with noise)",
        "step 17 of 40",
        "not connected last seen 2026-01-05 09:07:37",
        "3 requests refused: too many requests",
        "refused in 1 round",
        "in quarantine: the site declared other numbers of patients than before",
        "raw-high is in quarantine: it declared other patients.",
        "7 × no certificate",
        "2.500 highest of the sites; of a budget of 8.0 at delta 1e-05",
        "117 + 29",
        "gateway ready, 2 restarts",
        "No model is released yet.",
    ):
        assert part in page, part


def test_a_run_that_is_over_shows_its_model_and_no_connections(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run")
    (run / "model").mkdir()
    page = text_of(visitor(run), "/runs/0")
    assert "finished" in page
    assert "1,402,611" in page
    assert str(run / "model") in page
    assert "connected" not in page
    assert "Epsilon" not in page


def test_one_run_is_the_first_page_and_several_have_a_list(tmp_path: Path, live: Path) -> None:
    assert visitor(live).get("/").headers["location"] == "/runs/0"
    done = write_run_folder(tmp_path / "done")
    page = text_of(visitor(live, done, tmp_path / "missing"), "/")
    assert "6 / 12" in page
    assert "10 / 10" in page
    assert "does not exist" in page


def test_runs_with_one_name_are_told_apart_by_as_much_of_their_paths_as_that_takes(tmp_path: Path) -> None:
    first, second, third = (tmp_path / part for part in ("a/server/run", "b/server/run", "c"))
    assert names_apart(["x", "x", "y"], [first, second, third]) == ["x (a/server/run)", "x (b/server/run)", "y"]
    assert names_apart(["x", "y", "x"], [first, second, third]) == ["x (run)", "y", "x (c)"]
    runs = [write_run_folder(folder, 2) for folder in (first, second)]
    page = visitor(*runs).get("/runs/0").text
    assert page.count(">hippocampus (a/server/run)</a>") == page.count(">hippocampus (b/server/run)</a>") == 1


def test_a_run_that_waits_for_its_first_round_shows_its_sites_and_no_figures(live: Path) -> None:
    for name in ("rounds.jsonl", "state.json", "partition.json", "report.html", "events.jsonl"):
        (live / name).unlink()
    waiting = {name: {"connected": name == "raw-low"} for name in SITES}
    write_network_status(live, NetworkStatus(True, "", "waiting for sites", "fed.example:9443", sites=waiting))
    with only_start(live):
        page = text_of(visitor(live, role=Role.ACT), "/runs/0")
    for part in (
        "running waiting for sites",
        "0 / 12",
        "raw-low connected – – – – – – –",
        "Write the report Last events",
    ):
        assert part in page, part
    assert "after round" not in page
    assert "(median)" not in page


def test_a_server_that_is_not_running_shows_no_work_of_its_sites(live: Path) -> None:
    page = text_of(visitor(live), "/runs/0")
    assert "not running round 7 of 12" in page
    assert "last seen 2026-01-05 09:07:37" in page
    assert "step 17" not in page


def test_every_reason_of_the_protocol_has_words() -> None:
    texts = load_texts([Path(server.web.__file__).parent / "texts"])
    names = [*Refusal, *(code.name.lower().replace("_", "-") for code in ErrorCode), "deadline", "silence"]
    for language in texts.values():
        assert [name for name in names if not language.known(f"reason.{name}", "")] == []


def write_comparison(folder: Path) -> Path:
    """A comparison of two arms, of which one run has failed."""
    folder.mkdir()
    interval = {"value": 0.8712, "low": 0.85, "high": 0.89, "patients": 43}
    arm = {"meaning": EVIL, "steps": 480, "seeds": [0, 1], "dice": interval, "dice_of_sites": interval, "nsd": interval}
    worse = {"value": -0.012, "low": -0.02, "high": -0.004, "patients": 29}
    alone = {
        "arm": "fedavg",
        "site": "north",
        "difference": worse,
        "worse": True,
        "clearly_worse": True,
        "too_few": False,
    }
    runs = [
        {"arm": "fedavg", "seed": 0, "model_site": "", "status": "finished", "problem": None},
        {"arm": "local", "seed": 0, "model_site": "north", "status": "failed", "problem": "out of memory"},
    ]
    results = {
        "name": "hippocampus",
        "verdict": "No arm beats fedavg & its kin.",
        "runs": runs,
        "arms": [arm | {"arm": "fedavg", "hd95_mm": None}, arm | {"arm": "local", "hd95_mm": interval}],
        "against_alone": [alone, alone | {"worse": False, "site": "south"}],
    }
    (folder / "comparison.json").write_text("{}", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def test_a_comparison_is_shown_with_its_arms_and_who_is_worse_off(tmp_path: Path, live: Path) -> None:
    folder = write_comparison(tmp_path / "compared")
    check_folders([folder])
    client = visitor(live, folder)
    assert "compared 1 of 2 runs finished fedavg: 0.871 0.850 to 0.890 local: 0.871" in text_of(client, "/")
    assert client.get("/comparisons/0/report").status_code == 404
    assert "report.html" not in client.get("/comparisons/0").text
    (folder / "report.html").write_text("<!DOCTYPE html><title>compared</title>", encoding="utf-8")
    assert "/comparisons/0/report" in client.get("/comparisons/0").text
    assert "<title>compared" in client.get("/comparisons/0/report").text
    page = text_of(client, "/comparisons/0")
    for part in (
        "1 of 2 runs finished",
        "0.871 0.850 to 0.890",
        "fedavg, north: −0.012 (−0.020 to −0.004)",
        "No arm beats fedavg &amp; its kin.",
        "out of memory",
    ):
        assert part in page, part
    assert "south" not in page
    assert "<script>alert" not in client.get("/comparisons/0").text
    assert client.get("/comparisons/1").status_code == 404
    (folder / "results.json").write_text('{"runs": 1', encoding="utf-8")
    assert "results.json: cannot be read" in client.get("/comparisons/0").text
    (folder / "results.json").unlink()
    assert "is not there yet" in client.get("/comparisons/0").text
    assert "is not there yet" in text_of(client, "/")
    assert visitor(folder).get("/").headers["location"] == "/comparisons/0"


def test_runs_are_side_by_side_over_the_rounds_that_any_has(tmp_path: Path, live: Path) -> None:
    done = write_run_folder(tmp_path / "done", 10)
    curves = visitor(live, done, tmp_path / "missing").get("/curves").json()
    assert [curve["name"] for curve in curves["curves"]] == ["hippocampus (live)", "hippocampus (done)"]
    assert curves["x"] == list(range(11))
    assert curves["curves"][0]["y"][6:] == [None] * 5


def test_curves_have_every_site_and_every_round(live: Path) -> None:
    client = visitor(live)
    for kind, names in (("dice", [*SITES, "all sites"]), ("loss", [*SITES, "all sites"]), ("epsilon", list(SITES))):
        curves = client.get(f"/runs/0/curves/{kind}").json()
        assert [curve["name"] for curve in curves["curves"]] == names
        assert all(len(curve["y"]) == len(curves["x"]) == 6 for curve in curves["curves"])
    lines = [json.loads(line) for line in (live / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    dice = client.get("/runs/0/curves/dice").json()
    assert dice["curves"][0]["y"] == pytest.approx([line["sites"]["raw-low"]["mean_dice"] for line in lines], rel=1e-4)


def test_news_are_seen_and_the_time_of_a_look_is_none(live: Path) -> None:
    watch = server_side([live]).watch
    before = watch()
    assert watch() == before
    write_network_status(live, network_status(list(SITES), 7))
    assert watch() == before
    write_network_status(live, network_status(list(SITES), 7, step=18))
    after = watch()
    assert after != before
    with only_start(live):
        assert watch() != after


def test_a_released_site_is_written_down_with_who_did_it(live: Path) -> None:
    client = visitor(live, role=Role.ACT)
    form = {"csrf": csrf_of(client, "/runs/0"), "site": "raw-high"}
    assert client.post("/runs/0/release", data=form, headers=SAME_ORIGIN).headers["location"] == "/runs/0"
    assert "raw-high takes part again" in text_of(client, "/runs/0")
    page = client.get("/runs/0").text
    assert "Released; takes part again from the next round." in page
    assert "/runs/0/release" not in page
    (note,) = (live / "releases").iterdir()
    assert note.read_text(encoding="utf-8") == "raw-high"
    verify(live / AUDIT_FILE)
    (entry,) = written(live / AUDIT_FILE)
    assert entry.event == "page_action"
    assert entry.details == {"who": "link 1 (act)", "action": "release", "about": {"run": 0, "site": "raw-high"}}


def test_what_is_not_in_quarantine_cannot_be_released(live: Path) -> None:
    client = visitor(live, role=Role.ACT)
    for site in ("raw-low", "../../state", EVIL, ""):
        form = {"csrf": csrf_of(client, "/runs/0"), "site": site}
        assert client.post("/runs/0/release", data=form, headers=SAME_ORIGIN).status_code == 303
        assert "is not in quarantine" in text_of(client, "/runs/0")
    assert not (live / "releases").exists()
    assert {entry.event for entry in written(live / AUDIT_FILE)} == {"page_action", "page_action_failed"}


def test_whoever_may_only_look_sees_no_buttons_and_cannot_act(live: Path) -> None:
    client = visitor(live)
    page = client.get("/runs/0").text
    assert "/release" not in page
    assert "/write-report" not in page
    form = {"csrf": csrf_of(client, "/runs/0"), "site": "raw-high"}
    assert client.post("/runs/0/release", data=form, headers=SAME_ORIGIN).status_code == 403
    assert not written(live / AUDIT_FILE)


def test_names_of_sites_and_texts_of_runs_are_only_text(tmp_path: Path) -> None:
    run = write_live_run(tmp_path / "run", sites=(EVIL, "north\u202e", "south"), quarantined=EVIL)
    status = network_status([EVIL], 7)
    write_network_status(run, type(status)(**vars(status) | {"doing": EVIL, "endpoint": EVIL}))
    text = (run / "federation.yaml").read_text(encoding="utf-8").replace("hippocampus", json.dumps(EVIL))
    (run / "federation.yaml").write_text(text, encoding="utf-8")
    with (run / "events.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"time": EVIL, "event": EVIL, EVIL: [EVIL]}) + "\n")
    client = visitor(run, tmp_path / EVIL.replace("/", "_"), role=Role.ACT)
    with only_start(run):
        for path in ("/", "/runs/0", "/runs/0/rounds", "/runs/0?lang=de"):
            page = client.get(path).text
            assert "<script>alert" not in page
            assert not {"\x1b", "\u202e"} & set(page)
            assert "&lt;script&gt;" in page
    assert client.get("/runs/0/curves/dice").headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "path",
    [
        "/runs/1",
        "/runs/-1",
        "/runs/0/curves/..%2F..%2Fstate.json",
        "/runs/0/curves/../../state.json",
        "/runs/0/report/../state.json",
        "/runs/0/examples",
        "/runs/0/model/weights.safetensors",
        "/runs/0%2F..%2F..",
        "/runs/9999999999999999999999",
    ],
)
def test_no_path_leads_to_another_file(live: Path, path: str) -> None:
    assert visitor(live, role=Role.ACT).get(path).status_code == 404


def test_the_report_is_saved_and_never_shown_here(live: Path) -> None:
    client = visitor(live)
    answer = client.get("/runs/0/report")
    assert answer.headers["content-disposition"] == 'attachment; filename="report.html"'
    assert "<title>report" in answer.text
    (live / "report.html").unlink()
    assert client.get("/runs/0/report").status_code == 404


def test_no_scan_and_no_case_is_on_any_page(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run")
    write_examples(run)
    client = visitor(run)
    for path in ("/runs/0", "/runs/0/rounds", "/runs/0/curves/dice", "/runs/0/curves/loss"):
        page = client.get(path).text
        assert "<img" not in page
        assert not re.search(r"raw-low_\d+", page)


def test_a_run_that_is_half_written_shows_what_is_there(live: Path) -> None:
    text = (live / "rounds.jsonl").read_text(encoding="utf-8")
    (live / "rounds.jsonl").write_text(text + '{"round": 7, "si', encoding="utf-8")
    page = text_of(visitor(live), "/runs/0")
    assert "The last line of rounds.jsonl is incomplete" in page
    assert "6 / 12" in page
    (live / "state.json").write_text("{", encoding="utf-8")
    page = text_of(visitor(live), "/runs/0")
    assert "cannot be read" in page
    assert "state.json" in page
    assert "step 17 of 40" not in page
    assert "raw-low" in page


def test_a_run_of_another_version_says_so(live: Path) -> None:
    folder = RunFolder(live)
    state = folder.load_state()
    assert state is not None
    from common.system.state_file import write_sealed

    write_sealed(live / "state.json", state.model_dump(mode="json") | {"format": 1})
    assert "was written by another version of Fedvox" in text_of(visitor(live), "/runs/0")


def test_what_is_no_run_is_refused_at_the_start_and_shown_as_such_later(tmp_path: Path, live: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folders, problem in (
        ([tmp_path / "empty"], "not the folder of a run"),
        ([tmp_path / "none"], "does not exist"),
        ([live, tmp_path / "empty" / ".." / "live"], "is given twice"),
    ):
        with pytest.raises(FedvoxError, match=problem):
            check_folders(folders)
    later = visitor(tmp_path / "none").get("/runs/0")
    assert later.status_code == 503
    assert "does not exist" in later.text


def test_a_status_of_another_shape_is_no_error(live: Path) -> None:
    content = json.loads((live / "status.json").read_text(encoding="utf-8"))
    odd = {"sites": {"x": None, "raw-low": {"step": "many"}}, "processes": {"p": 1}, "refused": {"x": {"why": "odd"}}}
    (live / "status.json").write_text(json.dumps(content | odd), encoding="utf-8")
    with only_start(live):
        assert "raw-low" in text_of(visitor(live), "/runs/0")


def test_everything_is_there_in_german(live: Path) -> None:
    with only_start(live):
        page = text_of(visitor(live), "/runs/0?lang=de")
    assert "läuft round 7 of 12" in page
    assert "in Quarantäne: der Standort hat andere Patientenzahlen angegeben" in page
    assert "Schritt 17 von 40" in page


def test_a_page_of_many_sites_and_rounds_stays_small(tmp_path: Path) -> None:
    sites = [f"site-{number:02d}" for number in range(32)]
    run = write_live_run(tmp_path / "run", 60, sites)
    client = visitor(run)
    assert len(client.get("/runs/0").content) < 300_000
    assert len(client.get("/runs/0/rounds").content) < 100_000
