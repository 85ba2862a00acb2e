"""A node from DCMTK's sender to DCMTK's receiver, and through kills."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from client.cli import main
from common.system.supervisor import MOST_HOPELESS_FAILURES
from tests.dicom_series import need_tool, save
from tests.e2e.commands import call
from tests.e2e.network_federation import wait_for
from tests.listening import NODE, PACS, PATIENCE_SECONDS, RunningNode, burst, free_port, pacs_at, small_series, storescu
from tests.orthanc import Orthanc, private_network, run_orthanc

COMPREHENSIVE_REPORT = "1.2.840.10008.5.1.4.1.1.88.33"


@contextlib.contextmanager
def storescp(folder: Path, port: int) -> Iterator[None]:
    """DCMTK as a destination."""
    folder.mkdir(exist_ok=True)
    command = [need_tool("storescp"), "-aet", PACS, "-od", str(folder), "+xa", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def test_results_reach_a_destination_that_was_down(tmp_path: Path) -> None:
    pacs, port = tmp_path / "pacs", free_port()
    node = RunningNode(tmp_path / "node", [pacs_at(port)], dicom={"series": {"modality": "MR", "description": "made*"}})
    first, second = (save(tmp_path / name, small_series(seed)) for seed, name in enumerate(("first", "second")))
    report = small_series(2)[:1]
    report[0].SOPClassUID = COMPREHENSIVE_REPORT
    node.start()
    try:
        wait_for(node.listens, PATIENCE_SECONDS, "the node to listen")
        both = [path for pair in zip(sorted(first.iterdir()), sorted(second.iterdir()), strict=True) for path in pair]
        assert storescu(node.port, *both, first).returncode == 0  # interleaved, and the first once more
        refused = storescu(node.port, save(tmp_path / "report", report))
        assert "SOPClassNotSupported" in refused.stdout + refused.stderr
        wait_for(lambda: node.status["destinations"].get("pacs", {}).get("problem"), PATIENCE_SECONDS, "a failure")
        shown = call(main, "listen", "status", "--config", node.config)
        assert shown.returncode == 0 and f"{PACS}@127.0.0.1:{port}" in shown.stdout
        with storescp(pacs, port):
            wait_for(lambda: node.status["destinations"]["pacs"]["sent"] == 4, PATIENCE_SECONDS, "results")
        assert node.stop() == 0
    finally:
        node.kill()
    results = [pydicom.dcmread(path) for path in pacs.iterdir()]
    sources = [pydicom.dcmread(next(folder.iterdir())) for folder in (first, second)]
    assert sorted((one.StudyInstanceUID, one.Modality) for one in results) == sorted(
        (source.StudyInstanceUID, modality) for source in sources for modality in ("SEG", "SR")
    )
    assert all("not for clinical use" in one.SeriesDescription.lower() for one in results)
    status = node.status
    assert not status["running"] and status["done"] == 2 and not status["set_aside"]


def test_from_a_pacs_and_back_to_it(tmp_path: Path) -> None:
    """Orthanc sends a series three times, and has it with one segmentation and one report afterwards."""
    with private_network():
        pacs = {"name": "pacs", "ae_title": Orthanc.title, "host": "127.0.0.1", "port": Orthanc.port}
        node = RunningNode(tmp_path / "node", [pacs], callers=[{"ae_title": Orthanc.title, "addresses": ["127.0.0.1"]}])
        modalities = [(NODE, node.port)]
        with run_orthanc(tmp_path / "orthanc", modalities) as orthanc:
            orthanc.upload(save(tmp_path / "study", small_series(0)))
            (series,) = orthanc.get("/series?expand")
            node.start()
            try:
                wait_for(lambda: orthanc.sends(NODE, series["ID"]), PATIENCE_SECONDS, "the node to listen")
                assert orthanc.sends(NODE, series["ID"])
                wait_for(lambda: node.status["done"] == 1, PATIENCE_SECONDS, "the study")
                wait_for(lambda: node.status["destinations"]["pacs"]["sent"] == 2, PATIENCE_SECONDS, "results")
                assert orthanc.sends(NODE, series["ID"])
            finally:
                node.kill()
            found = orthanc.get(f"/studies/{series['ParentStudy']}/series")
            assert sorted(one["MainDicomTags"]["Modality"] for one in found) == ["MR", "SEG", "SR"]
            assert len(orthanc.get("/instances")) == 6 + 2


@pytest.mark.long
def test_studies_come_in_while_the_model_is_damaged(tmp_path: Path) -> None:
    node = RunningNode(tmp_path / "node", [], shadow=True)
    weights = node.config.parent / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    node.start()
    try:
        wait_for(lambda: node.status["problem"], PATIENCE_SECONDS, "a problem")
        assert "model.safetensors" in node.status["problem"]
        assert call(main, "listen", "status", "--config", node.config).returncode == 1
        assert storescu(node.port, save(tmp_path / "study", small_series(0))).returncode == 0
        ends = "ended with status 2; starting again"
        wait_for(lambda: node.log.read_text().count(ends) > MOST_HOPELESS_FAILURES, 2 * PATIENCE_SECONDS, "ends")
        weights.write_bytes(whole)
        wait_for(lambda: node.status["done"] == 1, PATIENCE_SECONDS, "the study")
        assert node.status["problem"] == ""
        assert node.stop() == 0
    finally:
        node.kill()


@pytest.mark.long
def test_a_burst_with_kills_gives_each_result_once(tmp_path: Path) -> None:
    outcome = burst(tmp_path, studies=12, kills=2, seed=3)
    assert len(outcome.counts) == 12
    # At most the one that was being sent is sent again, under its own UID.
    assert sum(outcome.counts.values()) <= 12 + 2
    status = outcome.status
    assert status["done"] == 12 and not status["waiting"] and not status["incoming"] and not status["set_aside"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ae_title: FEDVOX", "callers"),
        ("ae_title: FEDVOX\ncallers: [{ae_title: CT1, addresses: [10.0.0.0/8]}]", "destinations"),
        ("ae_title: FEDVOX\ncallers: [{ae_title: CT1, addresses: [10.0.0.300]}]\nshadow: true", "callers.0.addresses"),
    ],
)
def test_wrong_configurations_name_the_key(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "node.yaml").write_text(line)
    shown = call(main, "listen", "--config", tmp_path / "node.yaml", "--model", tmp_path)
    assert shown.returncode == 2 and told in shown.stderr
