"""A run folder has one owner, no start that was refused or killed is in the next one's way, and data stay the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.federation import as_json, load_federation
from common.config.simulation import PhantomConfig
from common.errors import OutputError
from common.imaging.phantoms.dataset import write_phantom_dataset
from server.cli.entry import main
from server.progress.events import Event, Stage
from server.run_store.locks import START_LOCK, only_start
from server.simulation.experiment import SimulationOptions, simulate
from server.simulation.run_opening import open_run
from tests import tiny
from tests.conftest import REPOSITORY
from tests.server.simulation.killed_starts import begin


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small phantoms, each of a patient of its own, and beside them a cache that knows them."""
    folder = tmp_path_factory.mktemp("original")
    shape = PhantomConfig(cases_per_site=(4, 4), shape=(32, 32, 32))
    write_phantom_dataset(folder / "data", (4, 4), 0, shape.shape, shape.anatomy, shape.spacing_mm)
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "data" / "labelsTr").iterdir())
    rows = ["case,patient", *(f"{case},patient-{case}" for case in cases)]
    (folder / "data" / "patients.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def place(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``data`` and a federation file."""
    shutil.copytree(original / "data", tmp_path / "data")
    tiny.write_federation(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDVOX_CACHE", str(original / "cache"))
    return tmp_path


def start(*arguments: str) -> int:
    try:
        return main(["simulate", "federation.yaml", "--out", "runs/first", "--device", "cpu", *arguments])
    except SystemExit as end:  # wrong usage
        return int(end.code or 0)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def first_file(folder: str) -> Path:
    return min(Path("data", folder).iterdir())


def as_it_is() -> None:
    """The fault is in the arguments."""


def spoil_a_scan() -> None:
    first_file("imagesTr").write_bytes(b"no scan")


REFUSALS: dict[str, tuple[list[str], Callable[[], object]]] = {
    "unknown key": (["--set", "roundz=3"], as_it_is),
    "file that is not YAML": ([], lambda: Path("federation.yaml").write_text("name: [")),
    "no federation file": ([], lambda: Path("federation.yaml").unlink()),
    "unknown engine": (["--engine", "abacus"], as_it_is),
    "no such data": (["--data", "nowhere"], as_it_is),
    "data that are a file": (["--data", "federation.yaml"], as_it_is),
    "too few cases": (["--set", "simulation.partition={method: iid, sites: 5}"], as_it_is),
    "a label that no case has": (["--set", "labels={1: a, 2: b, 3: c, 4: nobody}"], as_it_is),
    "labels that mean something else": (["--set", "labels={1: a}"], as_it_is),
    "no such column": (["--set", "simulation.partition={method: column, file: sites.csv, column: no}"], as_it_is),
    "no initial model": (["--set", "initial_model=nowhere"], as_it_is),
    "too little memory": (["--set", "model.patch_size=[512, 512, 512]", "--set", "training.batch_size=512"], as_it_is),
    "a patch that cannot be halved": (["--set", "model.patch_size=[17, 16, 16]"], as_it_is),
    "a spoilt scan": ([], spoil_a_scan),
    "a spoilt scan without a cache": (["--no-cache"], spoil_a_scan),
    "a spoilt label map": ([], lambda: first_file("labelsTr").write_bytes(b"no label map")),
    "a case without its label map": ([], lambda: first_file("labelsTr").unlink()),
    "no table of sites": ([], lambda: Path("data/sites.csv").unlink()),
    "patients of other cases": ([], lambda: Path("data/patients.csv").write_text("case,patient\nx,y\n")),
    "a sweep of spoilt data": (["--sweep", "seed=1,2"], spoil_a_scan),
    "a sweep with a value that is none": (["--sweep", "rounds=1,many"], as_it_is),
    "a sweep that no data fit": (
        ["--sweep", "simulation.partition={method: iid, sites: 5},{method: iid, sites: 6}"],
        as_it_is,
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
@pytest.mark.usefixtures("place")
def test_a_refused_start_leaves_nothing(reason: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, spoil = REFUSALS[reason]
    spoil()
    before = names(place)
    assert start(*([] if "--data" in arguments else ["--data", "data"]), *arguments) in (1, 2)
    told = capsys.readouterr().err
    assert "internal error" not in told
    assert "Traceback" not in told
    assert names(place) == before, told


def test_after_a_refused_start_the_corrected_command_works(place: Path) -> None:
    for _ in range(2):
        assert start("--data", "nowhere") == 1
        assert start("--data", "data", "--set", "initial_model=nowhere") == 2
    begin(place, place / "runs" / "first")


def test_a_folder_with_something_else_is_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if its names are those of a run: only a lock file makes it one's own."""
    for name in ("thesis.txt", "checkpoints/best", "plan.json", "sweep"):
        file = Path("runs/first", name)
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        before = names(place)
        for more in ([], ["--resume"], ["--sweep", "seed=1,2"], ["--sweep", "seed=1,2", "--resume"]):
            assert start("--data", "data", *more) == 1
            assert "runs/first" in capsys.readouterr().err
        assert names(place) == before
        assert file.read_text() == "mine"
        shutil.rmtree("runs")


@pytest.mark.parametrize("locked", [False, True], ids=["", "with a lock file"])
@pytest.mark.parametrize(
    "mine",
    [
        ("federation.yaml", "checkpoints/best.pt"),
        ("federation.yaml", "plan.json", "data.json"),
        ("federation.yaml", "model/best.pt", "phantoms/imagesTr/a.nii.gz"),
        ("resolved.yaml", "phantoms/imagesTr/a.nii.gz"),
        ("resolved.yaml", "checkpoints/best.pt"),
        ("checkpoints/round_0000.safetensors", "data.json"),
        ("sweep.json", "report.html"),
        ("sweep.json", "phantoms/imagesTr/a.nii.gz"),
        ("seed-1/federation.yaml", "seed-1/checkpoints/best.pt"),
    ],
)
def test_no_start_touches_a_folder_of_the_users(place: Path, mine: tuple[str, ...], *, locked: bool) -> None:
    """Whatever its files are called, and even if a start that was killed in it left its lock."""
    folder = Path("runs/first")
    for name in mine:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Path("federation.yaml").read_text() if file.suffix == ".yaml" else "mine")
    if "resolved.yaml" in mine:
        (folder / "resolved.yaml").rename(folder / "federation.yaml")
        (folder / "federation.yaml").write_text(load_federation(folder / "federation.yaml").resolved())
    if locked:
        (folder / START_LOCK).write_text("{}")

    def files() -> dict[Path, object]:
        return {path: path.name == START_LOCK or path.read_bytes() for path in place.rglob("*") if path.is_file()}

    before = files()
    for data in ([], ["--data", "data"]):
        for more in ([], ["--sweep", "seed=1,2"]):
            assert start(*data, *more) == 1
            assert start(*data, *more, "--resume") in (1, 2)
    assert files() == before


def test_a_start_that_fails_once_its_state_is_written_can_be_resumed(place: Path) -> None:
    run = place / "runs" / "first"
    config = load_federation(place / "federation.yaml")

    def listen(event: Event) -> None:
        if isinstance(event, Stage):
            (run / "events.jsonl").mkdir(exist_ok=True)

    with pytest.raises(OutputError, match=r"events\.jsonl"):
        simulate(config, SimulationOptions(place / "data", run, device="cpu"), listen)
    (run / "events.jsonl").rmdir()
    begin(place, run, resume=True)


def test_a_sweep_leaves_the_folders_of_its_values_to_their_owners(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one whose run has not begun yet."""
    run = place / "runs" / "first" / "seed-1"
    with open_run(run, False, load_federation(place / "federation.yaml"), lambda event: None):
        before = names(run)
        (run.parent / START_LOCK).touch()
        (run.parent / "sweep.json").write_text(as_json({"key": "seed", "runs": []}))
        assert start("--data", "data", "--sweep", "seed=1", "--resume") == 1
        assert "is running already" in capsys.readouterr().err
        assert names(run) == before


def test_nobody_else_starts_or_resumes_a_run_that_is_running(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "runs" / "first"
    with only_start(run) as claim:
        claim.keep()
        for more in ([], ["--resume"], ["--sweep", "seed=1,2"], ["--sweep", "seed=1,2", "--resume"]):
            assert start("--data", "data", *more) == 1
            assert (
                f"is running already (process {os.getpid()} on {os.uname().nodename}, since 20"
                in capsys.readouterr().err
            )
        assert names(run) == {START_LOCK}
    begin(place, run)
    with only_start(run):
        assert main(["status", str(run)]) == 0
    assert "tiny: running, 0 of 3 rounds" in capsys.readouterr().out
    assert main(["status", str(run)]) == 0
    assert "tiny: unfinished, 0 of 3 rounds" in capsys.readouterr().out


@pytest.mark.parametrize(("stride", "least"), [(11, 3), pytest.param(1, 30, marks=pytest.mark.long)])
def test_a_start_that_was_killed_anywhere_is_in_nobodys_way(place: Path, stride: int, least: int) -> None:
    """With the same command, and with another configuration."""
    command = [sys.executable, "-m", "tests.server.simulation.killed_starts", str(place), str(stride)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) >= least


def change_a_scan() -> None:
    one, other = sorted(Path("data/imagesTr").iterdir())[:2]
    shutil.copyfile(other, one)


def remove_a_case() -> None:
    name = first_file("imagesTr").name.removesuffix(".nii.gz")
    for folder in ("imagesTr", "labelsTr"):
        first_file(folder).unlink()
    for table in ("patients.csv", "sites.csv"):
        rows = Path("data", table).read_text().splitlines(keepends=True)
        Path("data", table).write_text("".join(row for row in rows if not row.startswith(name)))
    declare(lambda cases: cases[1:])


def declare(change: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> None:
    file = Path("data/dataset.json")
    content = json.loads(file.read_text())
    content["training"] = change(sorted(content["training"], key=lambda case: case["image"]))
    content["numTraining"] = len(content["training"])
    file.write_text(json.dumps(content))


def give_a_scan_to_another_patient() -> None:
    table = Path("data/patients.csv")
    rows = table.read_text().splitlines()
    table.write_text("\n".join([*rows[:-1], rows[-1].split(",")[0] + ",somebody"]) + "\n")


def add_a_case() -> None:
    for folder in ("imagesTr", "labelsTr"):
        shutil.copyfile(first_file(folder), Path("data", folder, "zz_new.nii.gz"))
    with Path("data/patients.csv").open("a") as table:
        table.write("zz_new,patient-new\n")
    new = {"image": "./imagesTr/zz_new.nii.gz", "label": "./labelsTr/zz_new.nii.gz"}
    declare(lambda cases: [*cases, new])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (change_a_scan, r"imagesTr/\w+\.nii\.gz was changed since the run began; put back"),
        (lambda: first_file("labelsTr").write_bytes(b"none"), "labelsTr/"),
        (remove_a_case, "is gone since the run began; put back"),
        (
            give_a_scan_to_another_patient,
            r"it belongs to another patient \(patients\.csv, or PatientID of DICOM\) since",
        ),
    ],
)
def test_changed_data_are_noticed_when_a_run_is_resumed(
    place: Path, capsys: pytest.CaptureFixture[str], change: Callable[[], object], complaint: str
) -> None:
    begin(place, place / "runs" / "first")
    before = names(place / "runs")
    change()
    assert start("--data", "data", "--resume") == 1
    told = capsys.readouterr().err
    assert re.search(complaint, told), told
    assert names(place / "runs") == before


def test_cases_that_were_added_and_another_table_of_sites_are_told_and_no_hindrance(place: Path) -> None:
    run = place / "runs" / "first"
    begin(place, run)
    before = (run / "partition.json").read_bytes()
    add_a_case()
    Path("data/sites.csv").write_text("case,site\n")
    told = begin(place, run, resume=True)
    assert any("case zz_new was added since the run began, and takes no part in it" in text for text in told)
    assert any("the table of the sites was changed; the run keeps the sites" in text for text in told)
    assert (run / "partition.json").read_bytes() == before


@pytest.mark.parametrize("damaged", ["plan.json", "partition.json"])
def test_a_damaged_file_is_made_again_from_the_cases_that_the_run_began_with(place: Path, damaged: str) -> None:
    """Also if the data have more cases by now; of the plan, also if the table of sites is another one."""
    run = place / "runs" / "first"
    begin(place, run)
    before = {name: (run / name).read_bytes() for name in ("plan.json", "partition.json", "data.json")}
    (run / damaged).write_text("{}")
    add_a_case()
    if damaged == "plan.json":
        Path("data/sites.csv").write_text("case,site\n")
    told = begin(place, run, resume=True)
    assert any("case zz_new was added since the run began" in text for text in told)
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_damaged_plan_is_not_made_again_from_other_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "runs" / "first"
    begin(place, run)
    before = {name: (run / name).read_bytes() for name in ("partition.json", "data.json")}
    (run / "plan.json").write_text("{}")
    change_a_scan()
    assert start("--data", "data", "--resume") == 1
    assert "was changed since the run began; put back" in capsys.readouterr().err
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not (run / "plan.json").exists()


@pytest.mark.usefixtures("place")
def test_pooled_training_needs_one_site_and_no_weight() -> None:
    """Whatever the strategy asks of the sites."""
    sites = sorted({row.split(",")[1] for row in Path("data/sites.csv").read_text().split()[1:]})
    strategy = f"strategy={{min_sites: 2, weights: {{{sites[0]}: 3, {sites[1]}: 2}}}}"
    small = ("rounds=1", "training.local_steps=1", "model.channels=[4, 8]", "model.patch_size=[8, 8, 8]")
    options = (*small, "simulation.pooled=true", strategy)
    assert start("--data", "data", *(part for item in options for part in ("--set", item))) == 0
    summary = json.loads(Path("runs/first/summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["pooled"]["mean_dice"] is not None


def test_sites_that_fail_are_told_with_their_reasons_and_where_the_causes_are(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("model.channels=[4, 8]", "model.patch_size=[8, 8, 8]", "training.local_steps=8")
    diverging = ("training.optimizer=sgd", "training.learning_rate=1e9", "strategy.max_failed_rounds=1")
    assert start("--data", "data", *(part for item in (*small, *diverging) for part in ("--set", item))) == 1
    told = capsys.readouterr().err
    log = Path("runs/first/logs/simulation.log")
    assert "non-finite-loss at 2 of 2 sites, round 1" in told
    assert f"causes are in {log}" in told
    assert "Traceback" not in told
    assert "NonFiniteLossError: the loss is not finite; lower training.learning_rate" in log.read_text()
