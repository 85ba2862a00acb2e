"""node.yaml: defaults, and errors that name the key."""

from ipaddress import IPv4Address, ip_network
from pathlib import Path

import pytest

from client.node.config import Segmenting, load_node
from client.node.folders import read_note, write_note
from client.pacs.receiver import AllowedPeer
from common.errors import ConfigError

CALLERS = "callers: [{ae_title: CT1, addresses: [10.1.2.3, 10.2.0.0/16]}]\n"
LEAST = f"ae_title: FEDVOX\nshadow: true\n{CALLERS}"


def written(folder: Path, content: str) -> Path:
    path = folder / "node.yaml"
    path.write_text(content, encoding="utf-8")
    return path


def test_callers_have_addresses_and_networks(tmp_path: Path) -> None:
    node = load_node(written(tmp_path, LEAST))
    settings = node.receiver
    assert settings.peers == (AllowedPeer("CT1", (ip_network("10.1.2.3/32"), ip_network("10.2.0.0/16"))),)
    assert (settings.address, settings.port, settings.tls) == (str(IPv4Address(0)), 11112, None)
    assert node.state == tmp_path / "state" and node.destinations == ()


def test_in_shadow_mode_nothing_is_sent(tmp_path: Path) -> None:
    pacs = "destinations: [{name: pacs, ae_title: PACS, host: pacs.example, port: 104}]\n"
    assert load_node(written(tmp_path, LEAST + pacs)).destinations == ()
    (destination,) = load_node(written(tmp_path, LEAST.replace("true", "false") + pacs)).destinations
    assert destination.name == "pacs"


def test_rules_for_dicom_are_its_own_or_those_of_the_site(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("dicom: {min_slices: 7}")
    assert load_node(written(tmp_path, LEAST)).data_terms.dicom.min_slices == 5
    assert load_node(written(tmp_path, f"{LEAST}site: site.yaml")).data_terms.dicom.min_slices == 7
    both = f"{LEAST}site: site.yaml\ndicom: {{series: {{modality: CT}}}}"
    terms = load_node(written(tmp_path, both)).data_terms
    assert terms.dicom.min_slices == 5 and terms.dicom.series[0].modality == ("CT",)


def test_the_process_that_segments_is_told_what_concerns_it_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("geometry: {voxel_mm: [0.3, 8]}")
    content = f"""{CALLERS}
ae_title: FEDVOX
site: site.yaml
dicom: {{min_slices: 7, series: [{{modality: [MR, CT], description: "T1*"}}, {{body_part: KNEE}}]}}
inference: {{overlap: 0.25, mirror: true}}
results: {{segmentation: labelmap}}
destinations: [{{name: archive, url: "https://archive.example", token_file: archive.token}}]
"""
    node = load_node(written(tmp_path, content))
    path = tmp_path / "segmenting.json"
    write_note(path, node.segmenting.model_dump(mode="json"))
    told = Segmenting.model_validate(read_note(path))
    assert told == node.segmenting
    assert (told.geometry, told.dicom) == (node.data_terms.ranges, node.data_terms.dicom)
    assert told.destinations == ("archive",) and told.inference.mirror
    assert "token" not in path.read_text() and "10.1.2.3" not in path.read_text()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "mapping"),
        ("- 1", "mapping"),
        ("ae_title: FEDVOX\nshadow: true", "callers"),
        (f"ae_title: FEDVOX\n{CALLERS}", "destinations"),
        (LEAST.replace("FEDVOX", "A" * 17), "ae_title"),
        (LEAST.replace("10.2.0.0/16", "10.2.0.1/16"), "callers"),
        (f"{LEAST}typo: 1", "typo"),
        (f"{LEAST}port: 0", "port"),
        (f"{LEAST}settle_seconds: 0", "settle_seconds"),
        (f"{LEAST}dicom: {{series: {{modalities: MR}}}}", "modalities"),
        (f"{LEAST}destinations: [{{name: ../x, url: 'https://pacs.example'}}]", "name"),
        (f"{LEAST}destinations: [{{name: a, url: 'https://p'}}, {{name: a, url: 'https://q'}}]", "name of its own"),
        (f"{LEAST}destinations: [{{name: a, url: 'https://p', attempts: 3}}]", "see retry"),
        (f"{LEAST}limits: {{associations: 0}}", "associations"),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"node\.yaml(.|\n)*{told}"):
        load_node(written(tmp_path, content))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_node(tmp_path / "node.yaml")
    node = load_node(written(tmp_path, f"{LEAST}tls: {{certificate: a.pem, key: a.key, ca: ca.pem}}\nsite: s.yaml"))
    with pytest.raises(ConfigError, match=r"a\.pem: there is no such file"):
        _ = node.receiver
    with pytest.raises(ConfigError, match=r"s\.yaml: there is no such file"):
        _ = node.data_terms
