"""The dossier says what a run shows, marks what people must add, and refuses what it cannot use."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from common.errors import ConfigError, FedvoxError, OutputError
from common.system.supervisor import free_port
from server.cli.entry import main
from server.reporting.dossier.consent import read_consents
from server.reporting.dossier.contents import compose
from server.reporting.dossier.document import Basis, Page
from server.reporting.dossier.facts import RunFacts, gather
from server.reporting.dossier.write import files_of, write_dossier
from server.tracking.follow import track
from server.tracking.settings import MlflowServer, TrackingSettings
from tests.server.reporting.dossier.runs import EPSILON, write_consent, write_network_run
from tests.server.run_folder import write_json_lines, write_run_folder

REPOSITORY = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_folder(tmp_path_factory.mktemp("simulated") / "run")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network_run(tmp_path_factory.mktemp("network") / "run")


def pages(run: Path | RunFacts) -> dict[str, Page]:
    return {page.name: page for page in compose(gather(run) if isinstance(run, Path) else run).pages}


def said(page: Page, *bases: Basis) -> str:
    return "\n".join(one.text for one in page.statements if not bases or one.basis in bases)


def whole(run: Path) -> str:
    return "\n".join(files_of(compose(gather(run))).values())


def test_a_dossier_is_written_whole_beside_the_run(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in simulated.rglob("*")}
    out = tmp_path / "new" / "dossier"
    assert main(["dossier", str(simulated), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} >= {"README.md", "dpia.md", "record-of-processing.md", "risks.md"}
    assert [path.name for path in out.parent.iterdir()] == ["dossier"]
    assert {path: path.stat().st_mtime_ns for path in simulated.rglob("*")} == before
    count = sum(page.open_count for page in pages(simulated).values())
    assert f"{count} points for people to fill in" in capsys.readouterr().out
    texts = [path.read_text() for path in out.glob("*.md") if path.name != "README.md"]
    assert "".join(texts).count("**OPEN.**") == count


def test_what_exists_is_never_overwritten(simulated: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for out in list(tmp_path.iterdir()):
        with pytest.raises(OutputError, match="already exists; choose another --out"):
            write_dossier(simulated, out)
    assert not list((tmp_path / "folder").iterdir())
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for folder in (tmp_path / "other", tmp_path / "missing"):
        with pytest.raises(FedvoxError, match="give the folder"):
            write_dossier(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("kind", ["simulated", "network"])
def test_every_statement_says_where_it_comes_from(kind: str, request: pytest.FixtureRequest) -> None:
    facts = gather(request.getfixturevalue(kind))
    for page in compose(facts).pages:
        for one in page.statements:
            assert one.text and one.origin, one
            if one.basis is Basis.DESIGN:
                assert (REPOSITORY / one.origin).is_file(), one
            if one.basis is Basis.OPEN:
                assert "." not in one.origin, one
            if one.basis in (Basis.SHOWN, Basis.DECLARED) and not re.search(r"\b([Nn]o|not)\b", one.text):
                assert any((facts.run.folder / name).exists() for name in one.origin.split(", ")), one


def test_a_simulation_says_that_no_hospital_took_part(simulated: Path) -> None:
    texts = files_of(compose(gather(simulated)))
    for name, text in texts.items():
        if name.endswith(".md"):
            assert "No hospital took part" in text, name
    text = whole(simulated)
    assert "the program asked nobody for consent" in text
    assert "no consent exists" not in text, "the run cannot know"
    assert "Mutual TLS" not in said(pages(simulated)["record-of-processing"])
    assert not re.search(r"approved by|audit log is whole|chain is whole", text)


def test_a_network_run_has_its_sites_logs_and_refusals(network: Path) -> None:
    found = pages(network)
    assert "No hospital took part" not in whole(network)
    evidence = said(found["evidence"], Basis.SHOWN, Basis.DECLARED)
    assert "The chain is whole: 4 entries" in evidence
    assert f"last entry of the ledger {'0' * 64}; last entry of the audit log {'5' * 64}" in evidence
    assert "Has reported nothing." in evidence
    risks = said(found["risks"], Basis.SHOWN)
    assert "Only 2 updates counted in 1 round (2)" in risks
    assert "by reason: refused (norm-outlier): 1." in risks
    assert "by who sent them: north (2 x expired)" in risks
    assert "2 sites of 3 reported the ends of their logs" in risks
    assert "The coordinator's server at fed.example:9443." in said(found["record-of-processing"], Basis.DECLARED)


def test_spent_privacy_is_the_sites_word(network: Path, tmp_path: Path) -> None:
    page = pages(network)["dpia"]
    assert "a budget of epsilon 3 at delta 1e-05" in said(page, Basis.SHOWN)
    assert f"spent epsilon {EPSILON:.3f} at most" in said(page, Basis.DECLARED)
    assert f"epsilon {EPSILON:.3f}" not in said(page, Basis.SHOWN)
    without = pages(write_network_run(tmp_path / "run", private=False))["dpia"]
    assert "no proven bound" in said(without, Basis.SHOWN)
    assert "Whether a model without such a bound may be released" in said(without, Basis.OPEN)
    assert "epsilon" not in said(without, Basis.SHOWN)


def test_an_unfinished_run_is_marked_on_every_page(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run")
    (run / "summary.json").unlink()
    for name, text in files_of(compose(gather(run))).items():
        if name.endswith(".md"):
            assert "DRAFT: this run is not finished" in text, name
    (run / "rounds.jsonl").unlink()
    (run / "state.json").unlink()
    (run / "events.jsonl").unlink()
    found = pages(run)
    assert "No round has changed the model yet." in said(found["risks"])
    assert "There is no state yet" in said(found["evidence"])
    assert "No model is released." in said(found["evidence"])


def test_damage_is_said_and_never_called_whole(tmp_path: Path) -> None:
    run = write_network_run(tmp_path / "run")
    log = run / "audit.jsonl"
    log.write_text(log.read_text().replace('"round":2', '"round":9'), encoding="utf-8")
    with (run / "rounds.jsonl").open("r+", encoding="utf-8") as stream:
        stream.write('{"round": 7')
    text = whole(run)
    assert "BROKEN: audit.jsonl, line 2: was edited" in text
    assert "rounds.jsonl: was changed or cut" in text
    assert "Some files of the run are damaged" in text
    assert not re.search(r"chain is whole|Every file that the state names", text)
    (run / "site-reports.json").write_text("{}", encoding="utf-8")
    (run / "state.json").write_text("{}", encoding="utf-8")
    assert "site-reports.json: " in whole(run)


def test_phantoms_are_nobodys_data(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run")
    with (run / "federation.yaml").open("a", encoding="utf-8") as stream:
        stream.write("simulation: {phantom: {anatomy: body}}\n")
    facts = gather(run)
    assert "PHANTOM: synthetic volumes, not scans of people." in compose(facts).notices
    assert "no data subjects" in said(pages(facts)["record-of-processing"], Basis.SHOWN)


def test_updates_that_are_left_are_counted(tmp_path: Path) -> None:
    run = write_network_run(tmp_path / "run")
    assert "holds no update of a single site any more" in said(pages(run)["record-of-processing"])
    for name in ("updates/x/1.bin", "gateway/sites/north/updates/2.part", "gateway/sites/north/heartbeat.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    assert "still holds 2 files of single sites' updates" in said(pages(run)["record-of-processing"])


def test_others_who_may_have_seen_the_run_are_asked_for(network: Path, simulated: Path, tmp_path: Path) -> None:
    for run in (network, simulated):
        page = pages(run)["record-of-processing"]
        assert "sends nothing to others" not in said(page)
        assert "Whether there was a tracking server, monitoring or a page" in said(page, Basis.OPEN)
        assert "A tracker was used" not in said(page)
    run = write_network_run(tmp_path / "run")
    nobody = MlflowServer(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(FedvoxError, match="cannot be reached"):
        track(run, TrackingSettings(nobody))
    assert "A tracker was used for this run." in said(pages(run)["record-of-processing"], Basis.SHOWN)


def test_the_record_has_every_item_of_the_regulation(network: Path) -> None:
    page = pages(network)["record-of-processing"]
    topics = [row.topic for section in page.sections for row in section.rows]
    assert sorted({topic[:3] for topic in topics}) == [f"({letter})" for letter in "abcdefg"]
    assert "data concerning health (Art. 4 (15), Art. 9)" in said(page, Basis.DESIGN)
    assert "Staff of the hospitals" in said(page, Basis.DESIGN)
    asked = said(page, Basis.OPEN)
    for word in ("controllers", "representatives", "data-protection officers", "Processors", "transfer", "How long"):
        assert word in asked, word


def test_updates_that_the_federation_keeps_are_not_called_removed(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run")
    assert "are removed when the run ends" in said(pages(run)["record-of-processing"])
    with (run / "federation.yaml").open("a", encoding="utf-8") as stream:
        stream.write("simulation: {keep_updates_gb: 1}\n")
    assert "are removed when the run ends" not in said(pages(run)["record-of-processing"])


def test_few_patients_are_not_told_in_numbers(tmp_path: Path) -> None:
    run = write_network_run(tmp_path / "run", ["north"])
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        line["sites"]["north"] |= {"examples": 73, "validation_examples": 4}
    write_json_lines(run / "rounds.jsonl", lines)
    assert "73 patients for training and fewer than 5 to score models" in said(pages(run)["dpia"], Basis.DECLARED)


THREATS = {
    "the server": "The coordinator learns",
    "another hospital": "Another hospital works out",
    "somebody on the line": "Somebody reads or changes",
    "somebody with a hospital's key": "Somebody takes part",
    "A fingerprint is sums.": "A fingerprint of",
    "No way back.": "set back to an older copy",
    "The server.": "The server is broken into",
    "The gateway,": "The server is broken into",
    "An account on the server's machine.": "The server is broken into",
    "The coordinator's laptop,": "poses as the server",
    "A hospital.": "poisons the model",
    "A minority of hospitals": "collude",
    "Half of the hospitals or more": "collude",
    "A hospital's courier,": "Scans leave",
    "A hospital's runner,": "Scans leave",
    "Both halves of a hospital": "Scans leave",
    "An administrator of the hospital's machine": "an administrator who reads along",
    "Attacks on availability.": "Attacks on availability",
    "What the model reveals": "The released model reveals",
    "The supply chain.": "The supply chain",
    "The kit's way to the hospital.": "The kit is changed",
    "Side channels": "Side channels",
    "Disks.": "A lost disk",
    "Retention.": "Data stay longer",
    "Those who watch a run.": "Others watch the run",
    "Pages in a browser.": "acts at a page",
}
"""Who or what the threat model names -> a part of the row of the risk table that is about it."""
NO_THREATS = {
    *("No code from the wire.", "No certificate, no connection.", "A site speaks for itself alone."),
    *("Bounded memory and disk.", "The scans' process has no network.", "Only answers leave.", "A closed list."),
    *("A node answers known peers.", "Consent.", "Twelve requests.", "Unmodified libraries."),
}
"""What it names besides: measures, and a node, which trains nothing."""


def test_every_threat_of_the_threat_model_is_in_the_table(network: Path) -> None:
    text = (REPOSITORY / "deploy/docs/threat-model.md").read_text(encoding="utf-8")
    (who,) = re.findall(r"\| who \| can \| cannot \|\n.*\n((?:\|.*\n)+)", text)
    named = {*re.findall(r"\*\*([^*]+)\*\*", text), *re.findall(r"^\| ([^|]+) \|", who, re.MULTILINE)}
    assert named == THREATS.keys() | NO_THREATS
    topics = [row.topic for section in pages(network)["risks"].sections for row in section.rows]
    assert [topic.split(".")[0] for topic in topics] == [f"R{number}" for number in range(1, len(topics) + 1)]
    for threat, part in THREATS.items():
        assert any(part in topic for topic in topics), threat


def test_consent_documents_are_the_hospitals_word(network: Path, tmp_path: Path) -> None:
    who = {"user": "Dr. Example", "time": "2026-01-04T10:00:00+00:00", "account": "x"}
    files = [
        write_consent(tmp_path / "north.json", "north", approved=who, withdrawn=None),
        write_consent(tmp_path / "south.json", "south", approved=who, withdrawn=who | {"user": "Dr. Other"}),
    ]
    page = pages(write_dossier(network, tmp_path / "out", files).facts)["dpia"]
    declared = said(page, Basis.DECLARED)
    assert "north: approved by Dr. Example, 2026-01-04T10:00:00+00:00. So says the hospital's own document" in declared
    assert "south: withdrawn by Dr. Other" in declared
    assert "Who decided for west, and when" in said(page, Basis.OPEN)
    assert "approved by" not in said(page, Basis.SHOWN)
    assert "Who decided for north, south, west, and when" in said(pages(network)["dpia"], Basis.OPEN)


@pytest.mark.parametrize(
    ("decisions", "words"),
    [
        (
            {"approved": {"user": "A", "time": "t"}, "changed": "the kit was changed"},
            "no task is accepted: the kit was",
        ),
        (
            {"approved": {"user": "A", "time": "t"}, "outside_limits": ["x"]},
            "no task is accepted: the federation is out",
        ),
        ({"approved": {"user": "A", "time": "t"}, "paused": {"user": "B", "time": "u"}}, "by A, t; paused by B, u"),
        ({"automatic": True, "paused": {"user": "B", "time": "u"}}, "not by a person; paused by B, u"),
        ({"approved": {"user": "x" * 10_000, "time": "t"}}, "approved by xxx"),
        ({"automatic": False}, "not approved"),
    ],
)
def test_an_approval_that_does_not_hold_is_not_called_one(
    decisions: dict[str, object], words: str, network: Path, tmp_path: Path
) -> None:
    file = write_consent(tmp_path / "north.json", "north", **decisions)
    (document,) = read_consents([file], "d", ["north"])
    assert words in document.decision
    assert document.decision.startswith("approved") == ("approved by" in document.decision)
    assert len(document.decision) < 1000


def test_a_simulation_takes_no_consent(simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--consent: this run was a simulation"):
        write_dossier(simulated, tmp_path / "out", [write_consent(tmp_path / "north.json", "north")])
    assert not (tmp_path / "out").exists()


def test_documents_that_are_none_are_refused(network: Path, tmp_path: Path) -> None:
    good = write_consent(tmp_path / "good.json", "north")
    bad = {
        "missing.json": (None, "cannot be read"),
        "text.json": ("no JSON", "is not a consent document"),
        "list.json": ("[]", "is not a consent document"),
        "deep.json": ("[" * 100_000, "is not a consent document"),
        "large.json": (json.dumps({"x": "y" * 4_000_000}), "is not a consent document"),
        "other.json": (good.read_text().replace('"digest": "d"', '"digest": "e"'), "is about another federation"),
        "again.json": (good.read_text(), "is the second document of north"),
        "mars.json": (good.read_text().replace("north", "mars\\u001b[31m"), "of a site that the run does not know"),
    }
    for name, (text, problem) in bad.items():
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=problem):
            write_dossier(network, tmp_path / "out", [good, tmp_path / name])
    assert not (tmp_path / "out").exists()
