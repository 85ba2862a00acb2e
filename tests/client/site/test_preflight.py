"""Every item of the preflight, good and bad, against real TLS servers."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.consent.decisions import DecisionBook
from client.shared_folder import SharedFolder
from client.site import gpu_probe, preflight
from client.site.data_item import check_data
from client.site.preflight import (
    check_authority,
    check_device,
    check_disk,
    check_federation,
    check_isolation,
    check_kit,
    check_no_key,
    check_server,
    check_shared,
    judge_clock,
)
from client.site.preflight_item import Item
from common.config.federation import FederationConfig
from common.config.kit import Kit
from common.imaging.datasets.comparison import SiteTerms, Wanted
from common.imaging.datasets.name_rule import compile_rule
from common.imaging.phantoms.dataset import write_phantom_dataset
from common.imaging.ranges import GeometryRanges
from common.plan.plan import PreprocessingPlan
from common.system.supervisor import free_port
from server.provisioning.certificate_authority import Authority
from tests import kits, tiny
from tests.connect_proxy import connect_proxy
from tests.mutual_tls import granian, https_server, server_context, write_server, write_site

LABELS = {1: "organ", 2: "core", 3: "node"}
WANTED = Wanted(LABELS, ("synthetic",), "MR", PreprocessingPlan(spacing=(2.0, 2.0, 2.0)))
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("tiny")


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Path:
    return write_server(tmp_path / "server", authority)


@pytest.fixture
def site(tmp_path: Path, authority: Authority) -> Path:
    return write_site(tmp_path / "north", authority)


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def kit(port: int = 1, digest: str = "0" * 64, address: str = "127.0.0.1") -> Kit:
    return Kit(role="site", federation="tiny", digest=digest, address=address, port=port, site="north")


def found(site_kit: Kit, folder: Path, timeout: float = 5.0) -> dict[str, Item]:
    return {item.name: item for item in check_server(folder, site_kit, timeout)}


def test_a_good_server_gives_four_good_lines(server: Path, site: Path) -> None:
    with https_server(server_context(server)) as port:
        items = found(kit(port), site)
    assert list(items) == ["server", "certificate", "clock", "access"]
    assert {item.severity for item in items.values()} == {"ok"}


def test_granian_tells_the_time_too(server: Path, site: Path, tmp_path: Path) -> None:
    with granian(server, tmp_path) as port:
        items = found(kit(port), site)
    assert [(item.name, item.severity) for item in items.values()] == [
        ("server", "ok"), ("certificate", "ok"), ("clock", "ok"), ("access", "ok"),
    ]  # fmt: skip


def test_a_server_that_is_not_there_is_a_warning_for_it_may_come(site: Path) -> None:
    items = found(kit(free_port()), site)
    assert items["server"].severity == "warning"
    assert "cannot be reached (Connection refused)" in items["server"].text


def test_a_name_that_nobody_knows_is_a_warning(site: Path) -> None:
    [item] = check_server(site, kit(address="server.invalid"))
    assert item.severity == "warning" and "its name cannot be resolved" in item.text


def test_a_server_that_accepts_and_says_nothing_is_a_warning(site: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        [item] = check_server(site, kit(silent.getsockname()[1]), timeout=0.2)
    assert item.severity == "warning" and "no answer" in item.text


def test_a_front_that_hangs_up_is_a_warning_for_the_server_behind_it_may_be_starting(site: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging_up:

        def hang_up() -> None:
            connection, _ = hanging_up.accept()
            connection.recv(1)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        [item] = check_server(site, kit(hanging_up.getsockname()[1]))
        thread.join()
    assert item.severity == "warning"
    assert "closes the connection" in item.text


def test_something_without_tls_is_an_error(site: Path) -> None:
    with https_server(None) as port:
        items = found(kit(port), site)
    assert items["server"].severity == "error"
    assert "does not speak TLS" in items["server"].text


@pytest.mark.parametrize(("first_day", "text"), [(-91, "has expired"), (2, "not valid yet")])
def test_a_servers_certificate_out_of_its_time_is_an_error(
    authority: Authority, site: Path, tmp_path: Path, first_day: int, text: str
) -> None:
    folder = write_server(tmp_path / "server", authority, start=NOW + timedelta(days=first_day))
    with https_server(server_context(folder)) as port:
        items = found(kit(port), site)
    assert list(items) == ["certificate"]
    assert items["certificate"].severity == "error"
    assert text in items["certificate"].text


def test_a_certificate_for_another_address_is_an_error(server: Path, site: Path) -> None:
    with https_server(server_context(server), host="127.0.0.2") as port:
        [item] = check_server(site, kit(port, address="127.0.0.2"))
    assert (item.name, item.severity) == ("certificate", "error")
    assert "for a different address" in item.text


def test_whatever_opens_tls_on_the_way_is_named_with_what_to_ask_for(site: Path, tmp_path: Path) -> None:
    other = write_server(tmp_path / "other", Authority.create("Bluegate"))
    with https_server(server_context(other)) as port:
        [item] = check_server(site, kit(port))
    assert (item.name, item.severity) == ("certificate", "error")
    assert "CN=Bluegate federation" in item.text
    assert "intercepts TLS (ask IT to exempt 127.0.0.1)" in item.text


def test_a_certificate_that_expires_soon_is_a_warning(authority: Authority, site: Path, tmp_path: Path) -> None:
    folder = write_server(tmp_path / "server", authority, days=5)
    with https_server(server_context(folder)) as port:
        assert found(kit(port), site)["certificate"].severity == "warning"


def test_a_kit_that_cannot_be_used_is_not_shown_to_the_server(server: Path, site: Path) -> None:
    (site / "site.key").unlink()
    with https_server(server_context(server)) as port:
        [item] = check_server(site, kit(port))
    assert item.severity == "error" and "not contacted" in item.text


@pytest.mark.parametrize("front", ["openssl", "granian"])
def test_a_site_whose_certificate_is_refused_hears_why(
    authority: Authority, server: Path, site: Path, tmp_path: Path, front: str
) -> None:
    from common.certificates import load_certificate

    serial = load_certificate(site / "site.crt").serial_number
    (server / "ca.crl").write_bytes(authority.revocation_list({serial: NOW}))
    opened = https_server(server_context(server)) if front == "openssl" else granian(server, tmp_path)
    with opened as port:
        [item] = check_server(site, kit(port))
    assert (item.name, item.severity) == ("certificate", "error")
    assert item.text == "the server has revoked this site's certificate; ask the coordinator"


def test_a_server_that_trusts_another_authority_refuses(
    authority: Authority, server: Path, site: Path, tmp_path: Path
) -> None:
    context = server_context(write_server(tmp_path / "other", Authority.create("tiny")))
    context.load_cert_chain(server / "server.crt", server / "server.key")
    with https_server(context) as port:
        [item] = check_server(site, kit(port))
    assert (item.name, item.severity) == ("certificate", "error")
    assert "ask the coordinator for a new kit" in item.text


@pytest.mark.parametrize(
    ("status", "word", "severity", "text"),
    [
        (401, "unknown-site", "error", "does not accept this site"),
        (401, "clock", "error", "set the clock"),
        (401, "signature", "error", "does not accept this site's key"),
        (503, "", "warning", "not ready"),
        (404, "", "ok", "accepts this site"),
    ],
)
def test_what_the_gateway_says_to_a_signed_request(
    server: Path, site: Path, status: int, word: str, severity: str, text: str
) -> None:
    with https_server(server_context(server), status=status, word=word) as port:
        item = found(kit(port), site)["access"]
    assert (item.severity, text in item.text) == (severity, True)


@pytest.mark.parametrize(
    ("seconds", "severity", "side"), [(-600, "error", "ahead of"), (600, "error", "behind"), (60, "warning", "behind")]
)
def test_a_wrong_clock_is_noticed(server: Path, site: Path, seconds: int, severity: str, side: str) -> None:
    with https_server(server_context(server), clock=timedelta(seconds=seconds)) as port:
        item = found(kit(port), site)["clock"]
    assert item.severity == severity
    told, _, rest = item.text.partition(" s ")
    assert rest.startswith(side)
    assert abs(int(told) - abs(seconds)) <= 2, "HTTP tells whole seconds"


def test_a_server_that_does_not_tell_the_time_is_a_warning(server: Path, site: Path) -> None:
    with https_server(server_context(server), clock=None) as port:
        assert found(kit(port), site)["clock"].severity == "warning"


def test_the_limits_of_the_clock() -> None:
    assert [judge_clock(value).severity for value in (29, 31, 149, 151, -3, -5, -151)] == [
        "ok", "warning", "warning", "error", "ok", "error", "error",
    ]  # fmt: skip


def test_the_way_leads_through_the_proxy_with_its_password(
    server: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with https_server(server_context(server)) as port, connect_proxy("anna:p@ss:w") as (proxy_port, proxy):
        monkeypatch.setenv("HTTPS_PROXY", f"http://anna:p%40ss%3Aw@127.0.0.1:{proxy_port}")
        items = found(kit(port), site)
        assert f"through the proxy 127.0.0.1:{proxy_port}" in items["server"].text
        assert {item.severity for item in items.values()} == {"ok"}
        assert proxy.targets == [f"127.0.0.1:{port}"]
        monkeypatch.setenv("NO_PROXY", "example.org,127.0.0.0/8")
        assert "proxy" not in found(kit(port), site)["server"].text
        assert len(proxy.targets) == 1


def test_an_ipv6_address_stands_in_brackets_for_the_proxy(
    server: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with https_server(server_context(server), host="::1") as port, connect_proxy() as (proxy_port, proxy):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy_port}")
        items = found(kit(port, address="::1"), site)
        assert {item.severity for item in items.values()} == {"ok"}
        assert proxy.targets == [f"[::1]:{port}"]


@pytest.mark.parametrize("login", ["anna:wrong@", ""])
def test_a_wrong_password_of_the_proxy_is_an_error_that_does_not_show_it(
    site: Path, monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    with connect_proxy("anna:right") as (proxy_port, _):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{login}127.0.0.1:{proxy_port}")
        [item] = check_server(site, kit())
    assert (item.name, item.severity) == ("proxy", "error")
    assert "407" in item.text and "HTTPS_PROXY" in item.text and "wrong" not in item.text


@pytest.mark.parametrize(("status", "severity"), [(403, "error"), (502, "warning"), (503, "warning")])
def test_a_proxy_that_does_not_connect(site: Path, monkeypatch: pytest.MonkeyPatch, status: int, severity: str) -> None:
    with connect_proxy(status=status) as (proxy_port, _):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy_port}")
        [item] = check_server(site, kit())
    assert (item.name, item.severity, str(status) in item.text) == ("proxy", severity, True)


def test_a_proxy_that_is_not_there_is_a_warning(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    [item] = check_server(site, kit())
    assert (item.name, item.severity) == ("proxy", "warning")
    assert "cannot be reached" in item.text


@pytest.mark.parametrize("value", ["http://", "socks5://anna:secret@proxy:1080", "http://proxy:port", "http://a b:1"])
def test_a_proxy_variable_that_is_no_url_is_an_error(site: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    [item] = check_server(site, kit())
    assert (item.name, item.severity) == ("proxy", "error")
    assert "HTTPS_PROXY" in item.text and "http://USER:PASSWORD@HOST:PORT" in item.text and "secret" not in item.text


def test_a_proxy_that_opens_tls_is_named(
    server: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = server_context(write_server(tmp_path / "other", Authority.create("Bluegate")))
    with https_server(server_context(server)) as port, connect_proxy(opens=other) as (proxy_port, _):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy_port}")
        [item] = check_server(site, kit(port))
    assert (item.name, item.severity) == ("certificate", "error")
    assert f"the proxy 127.0.0.1:{proxy_port} intercepts TLS" in item.text and "ask IT to exempt 127.0.0.1" in item.text


def test_the_dates_of_the_authority(site: Path) -> None:
    file = site / "ca.crt"
    severities = [check_authority(file, NOW + timedelta(days=days)).severity for days in (-1, 1, 3640, 3651)]
    assert severities == ["error", "ok", "warning", "error"]


def test_a_damaged_authority_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nonsense")
    assert "is damaged" in check_authority(tmp_path / "ca.crt", NOW).text
    assert "is missing" in check_authority(tmp_path / "missing", NOW).text


def test_the_kit(site: Path, authority: Authority, tmp_path: Path) -> None:
    config = FederationConfig.model_validate({"name": "tiny", "rounds": 3})
    good, key = kits.with_files(site, kit(digest=config.digest())), site / "site.key"
    assert check_kit(site, good, config).severity == "ok"
    assert "was changed" in check_kit(site, kit(), config).text
    assert "does not state the SHA-256 of ca.crt" in check_kit(site, kit(digest=config.digest()), config).text
    key.chmod(0o644)
    item = check_kit(site, good, config)
    assert item.severity == "error" and "chmod 600" in item.text
    whole = key.read_bytes()
    for damaged in (b"", whole[:100], whole.replace(b"PRIVATE", b"PUBLIC"), b"\0" * len(whole)):
        key.write_bytes(damaged)
        found = check_kit(site, good, config)
        assert found.severity == "error" and str(key) in found.text
    shutil.copy(write_site(tmp_path / "other", authority) / "site.key", key)
    assert "do not belong together" in check_kit(site, good, config).text
    key.unlink()
    item = check_kit(site, good, config)
    assert item.severity == "error" and "site.key: is missing" in item.text


@pytest.mark.parametrize(
    ("days", "first_day", "severity", "text"),
    [(90, -80, "warning", "expires on"), (90, -91, "error", "expired on"), (90, 1, "error", "clock")],
)
def test_the_dates_of_a_sites_certificate(
    authority: Authority, tmp_path: Path, days: int, first_day: int, severity: str, text: str
) -> None:
    config = FederationConfig.model_validate({"name": "tiny", "rounds": 3})
    folder = write_site(tmp_path / "north", authority, days=days, start=NOW + timedelta(days=first_day))
    item = check_kit(folder, kits.with_files(folder, kit(digest=config.digest())), config)
    assert (item.severity, text in item.text, "site.crt" in item.text) == (severity, True, True)


def test_a_kit_without_its_key_is_enough_for_a_runner(site: Path) -> None:
    config = FederationConfig.model_validate({"name": "tiny", "rounds": 3})
    assert check_no_key(site).severity == "warning"
    (site / "site.key").unlink()
    assert check_federation(site, kits.with_files(site, kit(digest=config.digest())), config).severity == "ok"
    assert "was changed" in check_federation(site, kit(), config).text
    assert check_no_key(site).severity == "ok"


def test_a_good_shared_folder_is_made_and_let_go_of(tmp_path: Path) -> None:
    assert check_shared(tmp_path / "shared").severity == "ok"
    assert {path.name for path in (tmp_path / "shared").iterdir() if path.is_dir()} == {"inbox", "outbox"}
    assert list((tmp_path / "shared/outbox").iterdir()) == []
    with SharedFolder(tmp_path / "shared").held_by("runner"):
        pass


def test_a_shared_folder_that_is_held_by_another_half_of_its_kind_is_an_error(tmp_path: Path) -> None:
    shared = SharedFolder(tmp_path)
    shared.make()
    with shared.held_by("runner"):
        taken = check_shared(tmp_path)
        assert taken.severity == "error" and "another runner works here" in taken.text
        assert check_shared(tmp_path, "courier").severity == "ok"


def test_a_shared_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be made" in check_shared(tmp_path / "file").text
    (tmp_path / "folder/inbox").mkdir(parents=True)
    (tmp_path / "folder/outbox").touch()
    assert check_shared(tmp_path / "folder").severity == "error"


@pytest.mark.parametrize("place", ["/proc/self/shared", "/sys/shared"])
def test_a_shared_folder_where_nothing_can_be_written_is_an_error(place: str) -> None:
    item = check_shared(Path(place))
    assert item.severity == "error" and "create it, writable by courier and runner" in item.text


def test_whether_the_runner_has_a_network() -> None:
    assert check_isolation(True).severity == "ok"
    warned = check_isolation(False)
    assert warned.severity == "warning" and "has this machine's network" in warned.text


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantoms", [3], seed=0, shape=(32, 32, 32))


def test_good_data_are_read_once_and_again_when_they_change(scans: Path, tmp_path: Path) -> None:
    folder, memory = tmp_path / "scans", tmp_path / "memory.json"
    shutil.copytree(scans, folder)
    reads: list[int] = []

    def check() -> Item:
        return check_data(folder, WANTED, memory, lambda done, cases: reads.append(done))

    assert check().severity == "ok" and len(reads) == 3
    again = check()
    assert again.severity == "ok" and "unchanged" in again.text and len(reads) == 3
    assert check_data(folder, Wanted({1: "organ"}), memory).severity == "error", "other labels are another question"
    image = next((folder / "imagesTr").glob("*.nii.gz"))
    image.write_bytes(image.read_bytes()[:100])
    broken = check()
    assert broken.severity == "error" and image.name in broken.text


def test_what_start_would_refuse_is_an_error_and_doubts_are_told_every_time(scans: Path, tmp_path: Path) -> None:
    folder, memory = tmp_path / "scans", tmp_path / "memory.json"
    shutil.copytree(scans, folder)
    (folder / "imagesTr/notes.txt").write_text("free text")
    for _ in range(2):
        item = check_data(folder, WANTED, memory)
        assert (item.severity, "notes.txt: is not a NIfTI file" in item.text) == ("warning", True)
    narrow = SiteTerms(GeometryRanges(voxel_mm=(0.05, 0.5)))
    item = check_data(folder, WANTED, memory, terms=narrow)
    assert (item.severity, "geometry.voxel_mm in site.yaml" in item.text) == ("error", True), "other ranges, read again"


def test_nearly_equal_scans_of_two_patients_are_a_warning(scans: Path, tmp_path: Path) -> None:
    folder, memory = tmp_path / "scans", tmp_path / "memory.json"
    shutil.copytree(scans, folder)
    (folder / "dataset.json").unlink()
    for kind in ("imagesTr", "labelsTr"):
        shutil.copy(min((folder / kind).glob("*.nii.gz")), folder / kind / "again.nii.gz")
    scan = nibabel.load(folder / "imagesTr" / "again.nii.gz")
    array = np.asarray(scan.dataobj).copy()
    array[3, 3, 3] += 1
    nibabel.Nifti1Image(array, scan.affine).to_filename(folder / "imagesTr" / "again.nii.gz")
    for _ in range(2):
        item = check_data(folder, WANTED, memory)
        assert item.severity == "warning" and "has nearly the same voxels as case again" in item.text
    assert "unchanged" in item.text
    rule = compile_rule(".*(?P<patient>[an])[^an]*")  # "again" and "phantom_..." end with the same patient
    assert check_data(folder, WANTED, memory, terms=SiteTerms(patient_rule=rule)).severity == "ok"


def test_ok_means_that_the_plan_can_be_carried_out(scans: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    two = replace(WANTED, channels=("T1", "T2"))
    assert "1 channel here (synthetic), 2 in the federation (T1, T2)" in check_data(scans, two, memory).text
    fine = replace(WANTED, preprocessing=PreprocessingPlan(spacing=(0.01, 0.01, 0.01)))
    item = check_data(scans, fine, memory)
    assert (item.severity, "voxels will not fit: " in item.text) == ("error", True)
    swapped = replace(WANTED, labels={1: "core", 2: "organ", 3: "node"})
    item = check_data(scans, swapped, memory)
    assert (item.severity, "label 1 is 'organ' here, and 'core' in the federation" in item.text) == ("error", True)
    mapped = check_data(scans, swapped, memory, terms=SiteTerms(labels_map={"organ": "organ", "core": "core"}))
    assert mapped.severity == "ok"


def test_a_training_step_that_cannot_fit_is_an_error() -> None:
    config, plan = tiny.federation(), tiny.plan()
    assert preflight.check_memory(plan, config, "cpu").severity == "ok"
    item = preflight.check_memory(plan.model_copy(update={"patch_size": (4096, 4096, 4096)}), config, "cpu")
    assert item.severity == "error"
    assert "a training step will not fit: " in item.text and "lower model.patch_size" in item.text


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert check_data(tmp_path / "nowhere", WANTED, tmp_path / "memory.json").severity == "error"


def test_disk_space(tmp_path: Path) -> None:
    folders = {"cache": tmp_path / "not" / "there" / "yet"}
    assert check_disk(folders, needed=1).severity == "ok"
    full = check_disk(folders, needed=2**60)
    assert full.severity == "error" and "are needed" in full.text


def test_device() -> None:
    import torch

    assert check_device("cpu").severity == "ok"
    assert check_device("cuda").severity == ("ok" if torch.cuda.is_available() else "error")


def test_a_gpu_that_pytorch_does_not_use_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(preflight, "_GPU_DEVICES", (str(tmp_path / "none"),))
    assert check_device("auto").severity == "ok"
    monkeypatch.setattr(preflight, "_GPU_DEVICES", (str(tmp_path),))
    assert check_device("cpu").severity == "ok"
    if not torch.cuda.is_available():
        found = check_device("auto")
        assert (found.severity, "a GPU is present, but" in found.text) == ("warning", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cuda, text in ((None, "built without CUDA"), ("13.0", "finds no GPU")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        severity, said = gpu_probe.look("auto")
        assert (severity, text in said) == ("warning", True)


def test_a_gpu_that_refuses_is_an_error_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def refuse() -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    severity, said = gpu_probe.look("auto")
    assert (severity, "\n" in said) == ("error", False)
    assert "are busy or unavailable" in said


def test_a_gpu_whose_look_crashes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_GPU_DEVICES", (str(tmp_path),))
    # As a driver that does not fit can: the process ends without a word.
    (tmp_path / "torch.py").write_text("import os\nos._exit(3)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    found = check_device("auto")
    assert (found.severity, "exited with status 3" in found.text) == ("error", True)


def test_a_federation_that_nobody_approved_is_a_warning(tmp_path: Path) -> None:
    kit = kits.write_kit(tmp_path / "kit", tiny.federation(), tiny.plan())
    state, consent = tmp_path / "state", tmp_path / "consent.json"
    assert preflight.check_approval(kit, state, consent).severity == "warning"
    kits.approve(kit, state, consent)
    assert preflight.check_approval(kit, state, consent).severity == "ok"
    DecisionBook(state, consent).pause("Dr. Example")
    assert "paused" in preflight.check_approval(kit, state, consent).text


def test_a_kit_that_is_not_the_approved_one_is_an_error(tmp_path: Path) -> None:
    kit = kits.write_kit(tmp_path / "kit", tiny.federation(), tiny.plan())
    state, consent = tmp_path / "state", tmp_path / "consent.json"
    kits.approve(kit, state, consent)
    plan = kit / "plan.json"
    plan.write_text(plan.read_text().replace("16", "32", 1))
    found = preflight.check_approval(kit, state, consent)
    assert found.severity == "error" and "plan.json: not as approved by Dr. A" in found.text


def test_version() -> None:
    assert preflight.check_version().severity == "ok"
