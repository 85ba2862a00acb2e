"""Fingerprints at the coordinator: of which site, unaltered, for this federation, and complete."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from client.site.signing_request import make_request
from common.certificates import load_key
from common.config.chosen import Chosen, read_chosen
from common.config.federation import FederationConfig, load_federation
from common.errors import ConfigError, FedvoxError
from common.planning.fingerprint_file import FingerprintFile, read_fingerprint
from common.planning.histogram import EXTENT, HOUNSFIELD, SPACING, distribution
from common.planning.memory_budget import step_gb
from common.planning.resolve import open_settings, plan_from_config
from common.planning.shared_fingerprint import SharedFingerprint
from server.provisioning.kits import provision, revoke

SITES = ("north", "south")


def federation(**values: object) -> FederationConfig:
    content: dict[str, object] = {
        "name": "liver",
        "rounds": 2,
        "strategy": {"min_sites": 1},
        "labels": {1: "liver"},
        "channels": ["CT"],
        "modality": "CT",
        "model": {"channels": [8, 16], "groups": 4},
        "network": {"address": "fl.example.org", "sites": SITES},
    }
    return FederationConfig.model_validate(content | values)


def shared(cases: int, mm: float, has_liver: bool = True, minimum: int = 2) -> SharedFingerprint:
    """Scans of ``mm`` x ``mm`` x 5 mm and 128 x 128 x 200 mm with a liver of 40 to 60 HU."""

    def equal(value: float, scale: object) -> object:
        return distribution([np.array([value])] * cases, [str(n) for n in range(cases)], scale, minimum)

    voxels = [np.arange(40.0, 60.0, 0.01)] * cases
    return SharedFingerprint(
        cases=cases,
        channels=1,
        minimum_cell=minimum,
        spacing_mm=(equal(mm, SPACING), equal(mm, SPACING), equal(5.0, SPACING)),
        extent_mm=(equal(128.0, EXTENT), equal(128.0, EXTENT), equal(200.0, EXTENT)),
        labels_found=(has_liver,),
        intensities_hu=(distribution(voxels, [str(n) for n in range(cases)], HOUNSFIELD, minimum),),
    )


def write(folder: Path, site: str, content: SharedFingerprint, made_at: str = "2026-11-29T12:00:00+00:00") -> Path:
    """What a site sends: its request, and its fingerprint signed with the same key."""
    config = federation()
    if not (folder / site).exists():
        make_request(site, folder / site)
    file = FingerprintFile(
        federation=config.name,
        site=site,
        made_at=made_at,
        channels=config.channels or (),
        labels=config.label_names or {},
        modality=config.modality,
        fingerprint=content,
    )
    path = folder / site / "shared.json"
    path.write_text(file.signed(load_key(folder / site / "site.key")).as_json())
    return path


@pytest.fixture
def given(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    """Requests and fingerprints of both sites."""
    files = [write(tmp_path, "north", shared(20, 0.8)), write(tmp_path, "south", shared(40, 1.6))]
    return [tmp_path / site / f"{site}.csr" for site in SITES], files


def test_what_is_auto_follows_from_all_sites_and_is_written_into_the_kits(
    given: tuple[list[Path], list[Path]], tmp_path: Path
) -> None:
    requests, files = given
    report = provision(federation(), tmp_path / "kits", requests, fingerprints=files)
    assert report.notes[0] == "chosen from the fingerprints of 2 sites, 60 cases (north 20, south 40):"
    kit = tmp_path / "kits/sites/north"
    settled = load_federation(kit / "federation.yaml")
    # 40 of 60 cases have 1.6 mm. Slices of 5 mm are thick beside that, and keep their size.
    assert settled.preprocessing.spacing == (1.6, 1.6, 5.0)
    assert settled.model.patch_size == (80, 80, 40)
    (window,) = settled.preprocessing.intensity
    assert window.mean == pytest.approx(49.995, abs=0.01) and window.std == pytest.approx(20 / 12**0.5, abs=0.01)
    assert window.lower == pytest.approx(40.1, abs=0.1) and window.upper == pytest.approx(59.9, abs=0.1)
    assert open_settings(settled) == () and plan_from_config(settled).patch_size == (80, 80, 40)
    chosen = read_chosen(kit)
    assert chosen == Chosen(
        keys=("preprocessing.spacing", "preprocessing.intensity", "model.patch_size"), sites=("north", "south")
    )
    assert not (tmp_path / "kits/sites/north/fingerprints").exists(), "a hospital sees no other hospital's fingerprint"
    assert {path.name for path in (tmp_path / "kits/authority/fingerprints").iterdir()} == {"north.json", "south.json"}


def test_the_batch_that_fills_the_memory_is_written_and_shown_too(
    given: tuple[list[Path], list[Path]], tmp_path: Path
) -> None:
    requests, files = given
    config = federation(training={"memory_gb": 40.0, "batch_size": "auto"})
    assert open_settings(config)[-1] == "training.batch_size"
    provision(config, tmp_path / "kits", requests, fingerprints=files)
    kit = tmp_path / "kits/sites/north"
    settled = load_federation(kit / "federation.yaml")
    batch, plan = settled.training.batch_size, plan_from_config(settled)
    # A twentieth of 60 cases, each of which fills a patch; memory is left.
    assert batch == 3 and plan.batch_size is None and step_gb(plan, settled) < 40
    assert f"{batch} patches per step (training.batch_size)" in list(read_chosen(kit).in_words(settled))


def test_what_mean_and_spread_stood_in_for_is_said(tmp_path: Path) -> None:
    content = shared(20, 0.8)
    bright = [np.append(np.linspace(40.0, 59.9, 980), np.full(20, 300.0 + 100 * n)) for n in range(20)]
    window = distribution([np.repeat(values, 2) for values in bright], [str(n) for n in range(20)], HOUNSFIELD, 2)
    odd = content.model_copy(update={"intensities_hu": (window,)})
    files = [write(tmp_path, "north", odd), write(tmp_path, "south", content)]
    requests = [tmp_path / site / f"{site}.csr" for site in SITES]
    report = provision(federation(), tmp_path / "kits", requests, fingerprints=files)
    (note,) = [line for line in report.notes if "note:" in line]
    assert note.startswith(
        "  note: intensity_hu of channel 1: 800 of 80,000 are in cells that are not shown, so their mean"
    )
    (intensity,) = load_federation(tmp_path / "kits/sites/north/federation.yaml").preprocessing.intensity
    assert intensity.upper == pytest.approx(intensity.mean + 2.5758 * intensity.std, abs=0.01) and intensity.upper > 300


def test_what_is_written_by_hand_stays(given: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    requests, files = given
    window = {"clip": "window", "lower": -100, "upper": 200, "normalise": "given", "mean": 50, "std": 20}
    config = federation(preprocessing={"spacing": "keep", "intensity": [window]})
    assert open_settings(config) == ("model.patch_size",)
    provision(config, tmp_path / "kits", requests, fingerprints=files)
    settled = load_federation(tmp_path / "kits/server/federation.yaml")
    assert settled.preprocessing == config.preprocessing and settled.model.patch_size == (80, 80, 40)


@pytest.mark.parametrize("text", ["", "[]", '{"keys": ["rounds"], "sites": ["north"]}', '{"keys": [], "sites": []}'])
def test_a_damaged_list_of_what_was_chosen_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "chosen.json").write_text(text)
    with pytest.raises(ConfigError, match=r"chosen\.json: is missing or damaged; ask the coordinator for a new kit"):
        read_chosen(tmp_path)


def test_a_newer_fingerprint_replaces_the_one_that_was_kept(
    given: tuple[list[Path], list[Path]], tmp_path: Path
) -> None:
    requests, files = given
    provision(federation(), tmp_path / "kits", requests, fingerprints=files)
    newer = write(tmp_path, "north", shared(200, 0.8), "2026-11-30T12:00:00+00:00")
    provision(federation(), tmp_path / "kits", fingerprints=[newer])
    assert load_federation(tmp_path / "kits/server/federation.yaml").preprocessing.spacing == (0.8, 0.8, 5.0)
    older = write(tmp_path, "north", shared(20, 0.8))
    with pytest.raises(
        ConfigError, match=r"shared\.json: was made at 2026-11-29T12.*, before the one of 2026-11-30T12"
    ):
        provision(federation(), tmp_path / "kits", fingerprints=[older])
    older.write_text(older.read_text().replace("2026-11-29T", "2026-12-01T"))
    with pytest.raises(ConfigError, match="is not signed with the key of north, or was changed"):
        provision(federation(), tmp_path / "kits", fingerprints=[older])


def test_a_kept_fingerprint_is_checked_like_a_given_one(given: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    requests, files = given
    provision(federation(), tmp_path / "kits", requests, fingerprints=files)
    folder = tmp_path / "kits/authority/fingerprints"
    north, south = (folder / f"{site}.json" for site in SITES)
    kept = north.read_text()
    north.write_text(kept.replace('"cases": 20', '"cases": 30').replace('"count": 20,', '"count": 30,'))
    with pytest.raises(ConfigError, match=r"north\.json: "):
        provision(federation(), tmp_path / "kits")
    north.write_text(write(tmp_path / "stranger", "north", shared(30, 0.8)).read_text())
    with pytest.raises(ConfigError, match=r"fingerprints/north\.json: is not signed with the key of north"):
        provision(federation(), tmp_path / "kits")
    north.write_text(south.read_text())
    with pytest.raises(ConfigError, match=r"fingerprints/north\.json: is of south, and not of north"):
        provision(federation(), tmp_path / "kits")
    north.write_text(kept)
    before = load_federation(tmp_path / "kits/server/federation.yaml")
    revoke(tmp_path / "kits", "north")
    provision(federation(), tmp_path / "kits")
    assert load_federation(tmp_path / "kits/server/federation.yaml") == before, "the others' plan stays as it was"
    make_request("north", tmp_path / "again")
    with pytest.raises(ConfigError, match=r"fingerprints/north\.json: is not signed with the key of north"):
        provision(federation(), tmp_path / "kits", [tmp_path / "again/north.csr"])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"name": "lung"}, "was made for another name"),
        ({"labels": {1: "spleen"}}, "was made for another labels"),
        ({"modality": "MR"}, "was made for another modality"),
    ],
)
def test_a_fingerprint_is_for_one_federation_only(
    given: tuple[list[Path], list[Path]], tmp_path: Path, values: dict[str, object], problem: str
) -> None:
    requests, files = given
    with pytest.raises(ConfigError, match=problem):
        provision(federation(**values), tmp_path / "kits", requests, fingerprints=files)
    assert not (tmp_path / "kits").exists()


def test_a_fingerprint_that_is_not_its_sites_is_refused(given: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    requests, files = given
    kits = tmp_path / "kits"
    with pytest.raises(ConfigError, match=r"nobody can check that it is from north; also give the request"):
        provision(federation(), kits, requests[1:], fingerprints=files)
    with pytest.raises(ConfigError, match="a second fingerprint of north"):
        provision(federation(), kits, requests, fingerprints=[*files, files[0]])
    with pytest.raises(ConfigError, match=r"auto needs the fingerprint of every site, and there is none of south"):
        provision(federation(), kits, requests, fingerprints=files[:1])
    content = json.loads(files[0].read_text())
    for change in ({"site": "south"}, {"signature": ""}, {"signature": "00" * 104}, {"channels": ["CT2"]}):
        files[0].write_text(json.dumps(content | change))
        with pytest.raises(ConfigError, match=r"is not signed with the key of (north|south), or was changed"):
            provision(federation(), kits, requests, fingerprints=files[:1])
    files[0].write_text(json.dumps(content | {"site": "west"}))
    with pytest.raises(ConfigError, match="is of west, and not of north or south"):
        provision(federation(), kits, requests, fingerprints=files)
    assert not kits.exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"made_at": "2026-11-29"}', "ask the site to make it again"),
        ("", "shared.json: .*ask the site to make it again"),
        ("[1, 2]", "ask the site to make it again"),
        ('{"shapes": [[1, 2, 3]]}', "ask the site to make it again"),
        (" " * (2**22 + 1), "is not a fingerprint: it has more than"),
    ],
)
def test_what_is_no_fingerprint_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "shared.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_fingerprint(file)
    with pytest.raises(ConfigError, match="give the file that fedvox-client fingerprint wrote"):
        read_fingerprint(tmp_path / "none.json")


def test_what_cannot_be_chosen_is_refused(given: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    requests, files = given
    with pytest.raises(ConfigError, match=r"preprocessing\.spacing: with privacy it cannot be auto"):
        open_settings(federation(privacy={"epsilon": 4}))
    fixed = {"preprocessing": {"spacing": [1, 1, 5]}, "model": {"patch_size": [32, 32, 16]}, "modality": "MR"}
    with pytest.raises(ConfigError, match="is not needed: the federation file leaves nothing auto"):
        provision(federation(**fixed), tmp_path / "kits", requests, fingerprints=files)
    absent = [write(tmp_path, site, shared(20, 0.8, has_liver=False)) for site in SITES]
    with pytest.raises(ConfigError, match=r"labels\.1: at no site do minimum_cell .* label 1 \(liver\); remove"):
        provision(federation(), tmp_path / "kits", requests, fingerprints=absent)
    with pytest.raises(FedvoxError, match="channels: is missing"):
        open_settings(federation(channels=None))
    with pytest.raises(
        ConfigError, match=r"labels: preprocessing\.spacing: auto needs .* without gaps.*they are 1, 3: renum"
    ):
        open_settings(federation(labels={1: "liver", 3: "tumour"}))
