"""Kits and keys: complete, private, stable, and of one federation only."""

from __future__ import annotations

import shutil
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, uses_nist_ec_curve

from client.site.signing_request import make_request
from common.certificates import load_certificate, load_key, public_pem, server_identity, site_identity
from common.config.federation import FederationConfig
from common.config.kit import check_kit_files, read_kit
from common.errors import ConfigError, DamagedFileError, FedvoxError, OutputError
from common.plan.plan import Plan
from server.coordinator.startup import check_certificate
from server.provisioning.certificate_authority import Authority, AuthorityError, hosts_of, read_request
from server.provisioning.kits import provision, revoke
from server.provisioning.site_register import read_register, write_register
from tests.mutual_tls import public_key_of, write_server


def network(sites: tuple[str, ...] = ("north", "south"), **values: object) -> FederationConfig:
    return FederationConfig.model_validate(
        {
            "name": values.pop("name", "liver"),
            "rounds": 2,
            "strategy": {"min_sites": 1},
            "labels": {1: "liver"},
            "channels": ["CT"],
            "preprocessing": {"spacing": "keep"},
            "model": {"channels": [8, 16], "groups": 4, "patch_size": [16, 16, 16]},
            "network": {"address": "fl.example.org", "sites": sites, "other_addresses": ["192.0.2.7"]} | values,
        }
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def revoked_serials(kits: Path) -> set[int]:
    """What ``ca.crl`` lists, as signed by the authority."""
    revocations = x509.load_pem_x509_crl((kits / "server/ca.crl").read_bytes())
    authority = load_certificate(kits / "authority/ca.crt").public_key()
    assert isinstance(authority, ec.EllipticCurvePublicKey) and revocations.is_signature_valid(authority)
    return {entry.serial_number for entry in revocations}


def serial(kits: Path, site: str) -> int:
    return load_certificate(kits / "sites" / site / "site.crt").serial_number


def test_all_kits_are_there_and_readable(tmp_path: Path) -> None:
    config = network()
    provision(config, tmp_path / "kits")
    files = set(contents(tmp_path / "kits"))
    shared = {"kit.yaml", "ca.crt", "federation.yaml", "plan.json", "README.md"}
    assert files == {
        *("authority/ca.key", "authority/ca.crt", "authority/sites.json"),
        *(f"server/{name}" for name in shared | {"server.crt", "server.key", "ca.crl"}),
        *("server/sites/north.crt", "server/sites/south.crt"),
        *(f"sites/{site}/{name}" for site in ("north", "south") for name in shared | {"site.key", "site.crt"}),
    }
    kit = read_kit(tmp_path / "kits/sites/north", "site")
    assert (kit.site, kit.endpoint, kit.digest) == ("north", "fl.example.org:9443", config.digest())
    assert read_kit(tmp_path / "kits/server", "server").site is None
    Plan.model_validate_json((tmp_path / "kits/sites/north/plan.json").read_bytes())
    assert "fedvox-client start --kit . --data" in (tmp_path / "kits/sites/north/README.md").read_text()


def test_secrets_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    provision(network(), tmp_path / "kits")
    secrets = [path for path in (tmp_path / "kits").rglob("*") if path.name in ("ca.key", "server.key", "site.key")]
    assert len(secrets) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}


def test_the_certificate_is_good_for_every_address_and_the_given_time(tmp_path: Path) -> None:
    provision(network(certificate_days=20), tmp_path / "kits")
    server = tmp_path / "kits/server"
    authority = x509.load_pem_x509_certificate((server / "ca.crt").read_bytes())
    certificate = x509.load_pem_x509_certificate((server / "server.crt").read_bytes())
    assert hosts_of(certificate) == {"fl.example.org", "192.0.2.7", "localhost", "127.0.0.1"}
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=20)
    verifier = PolicyBuilder().store(Store([authority]))
    verifier.build_server_verifier(x509.DNSName("fl.example.org")).verify(certificate, [])
    with pytest.raises(VerificationError):
        verifier.build_server_verifier(x509.DNSName("other.example.org")).verify(certificate, [])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")


def test_a_sites_certificate_is_its_own_and_its_key_is_what_flower_takes(tmp_path: Path) -> None:
    provision(network(certificate_days=20), tmp_path / "kits")
    kit = tmp_path / "kits/sites/north"
    found = site_identity(kit, "north")
    assert found.certificate.not_valid_after_utc - found.certificate.not_valid_before_utc == timedelta(days=20)
    public = bytes_to_public_key(public_key_of(kit / "site.crt"))
    assert public == found.key.public_key()
    assert uses_nist_ec_curve(public)
    assert found.public_key == public_key_of(tmp_path / "kits/server/sites/north.crt")
    assert (kit / "site.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----"), "PKCS #8, which Granian wants"
    assert server_identity(tmp_path / "kits/server").certificate.issuer == found.certificate.issuer


def test_the_revocation_list_is_there_before_anything_is_revoked(tmp_path: Path) -> None:
    provision(network(), tmp_path / "kits")
    assert revoked_serials(tmp_path / "kits") == set()
    revocations = x509.load_pem_x509_crl((tmp_path / "kits/server/ca.crl").read_bytes())
    assert revocations.last_update_utc < datetime.now(UTC)
    assert revocations.next_update_utc == load_certificate(tmp_path / "kits/server/ca.crt").not_valid_after_utc


def test_running_again_changes_nothing(tmp_path: Path) -> None:
    provision(network(), tmp_path / "kits")
    before = contents(tmp_path / "kits")
    report = provision(network(), tmp_path / "kits")
    assert contents(tmp_path / "kits") == before
    assert report.sites == {"north": "unchanged", "south": "unchanged"}


def test_a_new_site_leaves_keys_and_certificate_as_they_were(tmp_path: Path) -> None:
    provision(network(), tmp_path / "kits")
    before = contents(tmp_path / "kits")
    report = provision(network(("north", "south", "west")), tmp_path / "kits")
    after = contents(tmp_path / "kits")
    assert report.sites["west"] == "new"
    kept = [name for name in before if Path(name).suffix in (".key", ".crt", ".crl")]
    assert len(kept) == 14
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert "sites/west/site.key" in after
    assert "server/sites/west.crt" in after


def test_a_deleted_kit_comes_back_without_the_private_key(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(network(), kits)
    before = serial(kits, "north")
    shutil.rmtree(kits / "sites/north")
    report = provision(network(), kits)
    assert not (kits / "sites/north/site.key").exists()
    assert serial(kits, "north") == before
    assert any("without the private key" in note for note in report.notes)


def test_a_key_that_does_not_belong_to_its_certificate_is_named(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(network(), kits)
    (kits / "sites/north/site.key").write_bytes((kits / "sites/south/site.key").read_bytes())
    assert any("is not the key of north; --renew north" in note for note in provision(network(), kits).notes)


def test_a_site_that_drops_out_of_the_file_is_not_let_in_until_it_is_back(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(network(), kits)
    south = serial(kits, "south")
    report = provision(network(("north",)), kits)
    assert not (kits / "server/sites/south.crt").exists()
    assert any("south" in note for note in report.notes)
    assert revoked_serials(kits) == {south}
    revoke(kits, "north")
    assert revoked_serials(kits) == {south, serial(kits, "north")}
    provision(network(), kits)
    assert serial(kits, "south") == south
    assert (kits / "server/sites/south.crt").exists()
    assert revoked_serials(kits) == {serial(kits, "north")}


def test_the_certificate_is_renewed_when_it_must_be(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(network(), kits)
    first = (kits / "server/server.crt").read_bytes()
    report = provision(network(other_addresses=["192.0.2.8"]), kits)
    second = (kits / "server/server.crt").read_bytes()
    assert second != first
    assert any("addresses" in note for note in report.notes)
    short = Authority.load(kits / "authority").issue(
        ["fl.example.org", "192.0.2.8"], 365, datetime.now(UTC) - timedelta(days=350)
    )
    (kits / "server/server.crt").write_bytes(short.certificate)
    (kits / "server/server.key").write_bytes(short.key)
    report = provision(network(other_addresses=["192.0.2.8"]), kits)
    assert any("expire" in note for note in report.notes)
    assert (kits / "server/server.crt").read_bytes() != short.certificate


def test_a_sites_certificate_is_renewed_for_the_same_key_and_the_old_one_stays_good(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(network(), kits)
    old, public = serial(kits, "north"), public_key_of(kits / "sites/north/site.crt")
    ends_soon(kits, "north")
    report = provision(network(), kits)
    new = load_certificate(kits / "sites/north/site.crt")
    assert report.sites == {"north": "changed", "south": "unchanged"}
    assert any("new certificate for the same key: it was about to expire" in note for note in report.notes)
    assert new.not_valid_after_utc > datetime.now(UTC) + timedelta(days=360)
    assert public_key_of(kits / "sites/north/site.crt") == public
    assert site_identity(kits / "sites/north", "north").certificate == new
    assert (kits / "server/sites/north.crt").read_bytes() == (kits / "sites/north/site.crt").read_bytes()
    assert revoked_serials(kits) == set()
    revoke(kits, "north")
    assert {old, new.serial_number} < revoked_serials(kits)


def test_an_authority_that_changed_signs_all_anew(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(network(), kits)
    keys = [public_key_of(kits / "sites" / site / "site.crt") for site in ("north", "south")]
    Authority.create("liver").save(kits / "authority")
    report = provision(network(), kits)
    assert sum("the authority changed" in note for note in report.notes) == 2
    for site in ("north", "south"):
        site_identity(kits / "sites" / site, site)
    server_identity(kits / "server")
    assert [public_key_of(kits / "sites" / site / "site.crt") for site in ("north", "south")] == keys
    assert revoked_serials(kits) == set()


def ends_soon(kits: Path, site: str) -> None:
    """Gives a site a certificate of which ten days are left."""
    authority, register = Authority.load(kits / "authority"), read_register(kits)
    key = load_key(kits / "sites" / site / "site.key").public_key()
    short = authority.issue_to_site(site, key, 20, datetime.now(UTC) - timedelta(days=15))
    write_register(kits / "authority", register.with_certificate(site, short, "coordinator"))


@pytest.mark.parametrize("place", ["register", "server", "site"])
def test_kits_of_the_earlier_form_are_recognised_and_not_mixed(tmp_path: Path, place: str) -> None:
    kits = tmp_path / "kits"
    for folder in ("authority", "server/sites", "sites/north"):
        (kits / folder).mkdir(parents=True)
    (kits / "authority/sites.json").write_text('{"format": 1, "federation": "liver", "sites": {}, "revoked_keys": []}')
    earlier = f"format: 1\nrole: {{role}}\nfederation: liver\ndigest: {'0' * 64}\naddress: a.example\nport: 9443\n"
    (kits / "server/kit.yaml").write_text(earlier.format(role="server"))
    (kits / "sites/north/kit.yaml").write_text(earlier.format(role="site") + "site: north\n")
    before = contents(kits)
    if place == "register":
        with pytest.raises(OutputError, match=r"older kit format.*new, empty --out") as refused:
            provision(network(), kits)
        with pytest.raises(OutputError, match="older kit format"):
            revoke(kits, "north")
    elif place == "server":
        with pytest.raises(ConfigError, match=r"older kit format.*provision.*new, empty --out") as refused:
            read_kit(kits / "server", "server")
    else:
        with pytest.raises(ConfigError, match=r"older kit format; ask the coordinator for a new kit") as refused:
            read_kit(kits / "sites/north", "site")
    assert "\n" not in str(refused.value)
    assert contents(kits) == before


def test_a_kit_of_a_later_form_wants_a_later_version(tmp_path: Path) -> None:
    (tmp_path / "kit.yaml").write_text("format: 3\n")
    with pytest.raises(ConfigError, match="newer kit format"):
        read_kit(tmp_path)


@pytest.mark.parametrize("name", ["ca.crt", "federation.yaml", "plan.json"])
def test_a_changed_file_of_a_kit_is_named(tmp_path: Path, name: str) -> None:
    provision(network(), tmp_path / "kits")
    kit = tmp_path / "kits/sites/north"
    check_kit_files(kit, read_kit(kit))
    (kit / name).write_bytes((kit / name).read_bytes() + b"\n")
    with pytest.raises(DamagedFileError, match=f"{name}: was changed.*ask the coordinator for a new kit"):
        check_kit_files(kit, read_kit(kit))


def test_a_changed_value_in_a_kits_file_is_named(tmp_path: Path) -> None:
    provision(network(), tmp_path / "kits")
    file = tmp_path / "kits/sites/north/kit.yaml"
    file.write_text(file.read_text().replace("port: 9443", "port: 9447"))
    with pytest.raises(ConfigError, match=r"kit\.yaml: was changed"):
        read_kit(file.parent)


@pytest.mark.parametrize("role", ["server", "site"])
@pytest.mark.parametrize("removed", ["all", "plan.json", "ca.crt"])
def test_a_kit_without_digests_is_refused(tmp_path: Path, role: str, removed: str) -> None:
    provision(network(), tmp_path / "kits")
    kit = tmp_path / "kits" / ("server" if role == "server" else "sites/north")
    described = read_kit(kit)
    if removed == "all":
        bare = described.model_copy(update={"files": {}, "sha256": None})
    else:
        files = {name: digest for name, digest in described.files.items() if name != removed}
        bare = described.model_copy(update={"files": files}).sealed()
    (kit / "kit.yaml").write_text(bare.model_dump_json(exclude_none=True))
    with pytest.raises(ConfigError, match=r"kit\.yaml: .*SHA-256.*provision again"):
        check_kit_files(kit, read_kit(kit))
    provision(network(), tmp_path / "kits")
    check_kit_files(kit, read_kit(kit))


def test_another_federation_or_folder_is_left_alone(tmp_path: Path) -> None:
    provision(network(), tmp_path / "kits")
    before = contents(tmp_path / "kits")
    with pytest.raises(OutputError, match="liver"):
        provision(network(name="kidney"), tmp_path / "kits")
    assert contents(tmp_path / "kits") == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_text("x")
    with pytest.raises(OutputError, match=r"holiday\.jpg"):
        provision(network(), tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["holiday.jpg"]


def test_a_file_that_leaves_the_plan_open_makes_nothing(tmp_path: Path) -> None:
    open_plan = network().model_copy(update={"labels": None})
    with pytest.raises(ConfigError, match="labels"):
        provision(open_plan, tmp_path / "kits")
    assert not (tmp_path / "kits").exists()
    with pytest.raises(ConfigError, match="network"):
        provision(network().model_copy(update={"network": None}), tmp_path / "kits")


def test_a_damaged_authority_is_not_replaced(tmp_path: Path) -> None:
    provision(network(), tmp_path / "kits")
    (tmp_path / "kits/authority/ca.key").write_bytes(b"")
    with pytest.raises(AuthorityError, match="backup"):
        provision(network(), tmp_path / "kits")
    assert (tmp_path / "kits/authority/ca.key").read_bytes() == b""


def test_a_run_that_failed_half_way_is_completed_by_the_next(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(network(("north",)), kits)
    (kits / "server/kit.yaml").unlink()
    (kits / "sites/south").write_text("in the way")
    with pytest.raises(OutputError, match="south"):
        provision(network(), kits)
    assert not list(kits.rglob("*.part"))
    (kits / "sites/south").unlink()
    assert provision(network(), kits).sites["south"] == "new"
    assert read_kit(kits / "server", "server").digest == read_kit(kits / "sites/south").digest


def test_a_site_may_make_its_own_key(tmp_path: Path) -> None:
    files = make_request("north", tmp_path / "north")
    report = provision(network(), tmp_path / "kits", [files.request])
    kit = tmp_path / "kits/sites/north"
    assert not (kit / "site.key").exists()
    assert bytes_to_public_key(public_key_of(kit / "site.crt")) == load_key(files.key).public_key()
    assert report.sites["north"] == "new"
    assert "without `site.key`" in (kit / "README.md").read_text()
    shutil.copy(files.key, kit)
    site_identity(kit, "north")
    provision(network(), tmp_path / "kits")
    assert (kit / "site.key").exists(), "a site's own key, in its kit, is left alone"


def test_a_sites_own_key_replaces_the_one_made_for_it(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(network(), kits)
    made = serial(kits, "north")
    files = make_request("north", tmp_path / "north")
    provision(network(), kits, [files.request], replace=["north"])
    assert not (kits / "sites/north/site.key").exists()
    assert revoked_serials(kits) == {made}
    assert public_key_of(kits / "server/sites/north.crt") == public_pem(load_key(files.key).public_key())


def test_a_second_request_shows_both_keys_and_wants_a_yes(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    first, second = (make_request("north", tmp_path / name) for name in ("first", "second"))
    provision(network(), kits, [first.request])
    before = (kits / "authority/sites.json").read_bytes()
    with pytest.raises(ConfigError, match="add --replace north") as refused:
        provision(network(), kits, [second.request])
    assert first.fingerprint in str(refused.value) and second.fingerprint in str(refused.value)
    with pytest.raises(ConfigError, match="add --replace north"):
        provision(network(), kits, [second.request], replace=["south"])
    assert (kits / "authority/sites.json").read_bytes() == before
    assert provision(network(), kits, [first.request]).sites["north"] == "unchanged", "the same key again is no other"
    provision(network(), kits, [second.request], replace=["north"])
    assert read_register(kits).sites["north"].key == second.fingerprint


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    stranger = make_request("stranger", tmp_path / "a").request
    with pytest.raises(ConfigError, match="stranger"):
        provision(network(), kits, [stranger])
    garbage = tmp_path / "garbage.csr"
    garbage.write_bytes(b"not a request")
    with pytest.raises(AuthorityError, match="signing request"):
        provision(network(), kits, [garbage])
    with pytest.raises(AuthorityError, match="no such file"):
        provision(network(), kits, [tmp_path / "missing.csr"])
    other = _request("north", ed25519.Ed25519PrivateKey.generate(), None)
    (tmp_path / "other.csr").write_bytes(other.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(AuthorityError, match="P-384"):
        read_request(tmp_path / "other.csr")
    assert not kits.exists()


def test_a_request_that_was_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    request = _request("north", ec.generate_private_key(ec.SECP384R1()), hashes.SHA384())
    der = request.public_bytes(serialization.Encoding.DER).replace(b"north", b"south")
    changed = x509.load_der_x509_csr(der)
    (tmp_path / "changed.csr").write_bytes(changed.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(AuthorityError, match="signature"):
        read_request(tmp_path / "changed.csr")


def test_two_sites_cannot_share_a_key(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    for name in ("north", "south"):
        request = _request(name, key, hashes.SHA384())
        (tmp_path / f"{name}.csr").write_bytes(request.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(AuthorityError, match="key of north"):
        provision(network(), tmp_path / "kits", [tmp_path / "north.csr", tmp_path / "south.csr"])


def test_a_revoked_site_stays_out_until_it_has_a_new_key(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    files = make_request("north", tmp_path / "north")
    provision(network(), kits, [files.request])
    first = serial(kits, "north")
    revoke(kits, "north")
    assert not (kits / "server/sites/north.crt").exists()
    assert revoked_serials(kits) == {first}
    assert provision(network(), kits).sites["north"] == "revoked"
    assert not (kits / "server/sites/north.crt").exists()
    with pytest.raises(AuthorityError, match="revoked"):
        provision(network(), kits, [files.request])
    provision(network(), kits, renew=["north"])
    assert serial(kits, "north") not in revoked_serials(kits)
    assert (kits / "sites/north/site.key").exists()
    with pytest.raises(AuthorityError, match="revoked"):
        provision(network(), kits, [files.request])
    with pytest.raises(AuthorityError, match="revoked"):
        provision(network(("north", "west")), kits, [_as_another_site(files.key, "west", tmp_path)])


def test_revoking_twice_is_the_same_as_once(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(network(), kits)
    revoke(kits, "north")
    register = read_register(kits)
    revoke(kits, "north")
    assert read_register(kits) == register
    assert revoked_serials(kits) == {serial(kits, "north")}


def test_a_damaged_register_is_named(tmp_path: Path) -> None:
    provision(network(), tmp_path / "kits")
    file = tmp_path / "kits/authority/sites.json"
    file.write_text(file.read_text().replace("BEGIN CERTIFICATE", "BEGIN"))
    with pytest.raises(AuthorityError, match=r"sites\.json: is damaged; restore"):
        provision(network(), tmp_path / "kits")


def test_revoking_a_stranger_names_the_sites(tmp_path: Path) -> None:
    provision(network(), tmp_path / "kits")
    with pytest.raises(ConfigError, match="north, south"):
        revoke(tmp_path / "kits", "nobody")
    with pytest.raises(OutputError, match="no kits"):
        revoke(tmp_path, "north")


def test_kits_are_not_mixed_up(tmp_path: Path) -> None:
    provision(network(), tmp_path / "kits")
    with pytest.raises(ConfigError, match="fedvox-client start"):
        read_kit(tmp_path / "kits/sites/north", "server")
    with pytest.raises(ConfigError, match="is not a kit"):
        read_kit(tmp_path)
    file = tmp_path / "kits/sites/north/kit.yaml"
    file.write_text(file.read_text().replace("north", "../north"))
    with pytest.raises(ConfigError, match="site"):
        read_kit(tmp_path / "kits/sites/north")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"address": "https://fl.example.org"}, "address"),
        ({"address": "192.0.2.300"}, "address"),
        ({"sites": ["north", "north"]}, "sites"),
        ({"sites": ["North"]}, "sites"),
        ({"sites": []}, "sites"),
        ({"port": 0}, "port"),
        ({"certificate_days": 0}, "certificate_days"),
        ({"heartbeat_seconds": 7200}, "heartbeat_seconds"),
        ({"heartbeat_seconds": 60, "silence_deadline_seconds": 60}, "silence_deadline_seconds"),
    ],
)
def test_bad_network_sections_are_refused(values: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        network(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("begin", "days", "message"),
    [(timedelta(days=-10), 5, "expired"), (timedelta(days=1), 5, "clock")],
)
def test_start_refuses_a_certificate_out_of_its_time(tmp_path: Path, begin: timedelta, days: int, message: str) -> None:
    authority = Authority.create("liver")
    write_server(tmp_path, authority)
    issued = authority.issue(["fl.example.org"], days, datetime.now(UTC) + begin)
    (tmp_path / "server.crt").write_bytes(issued.certificate)
    (tmp_path / "server.key").write_bytes(issued.key)
    for with_key in (True, False):
        with pytest.raises(FedvoxError, match=message):
            check_certificate(tmp_path, with_key, print)


def test_start_refuses_a_key_of_another_certificate(tmp_path: Path) -> None:
    authority = Authority.create("liver")
    write_server(tmp_path, authority)
    (tmp_path / "server.key").write_bytes(authority.issue(["fl.example.org"], 9, datetime.now(UTC)).key)
    check_certificate(tmp_path, False, print)
    with pytest.raises(FedvoxError, match=r"server\.key and server\.crt do not belong together"):
        check_certificate(tmp_path, True, print)


@pytest.mark.parametrize("with_key", [True, False])
def test_start_says_what_to_do_without_a_certificate(tmp_path: Path, with_key: bool) -> None:
    write_server(tmp_path, Authority.create("liver"))
    (tmp_path / "server.crt").unlink()
    with pytest.raises(FedvoxError, match=r"server\.crt: is missing; run fedvox-server provision again"):
        check_certificate(tmp_path, with_key, print)


def test_start_says_that_a_certificate_is_about_to_expire(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority.create("liver")
    write_server(tmp_path, authority)
    issued = authority.issue(["fl.example.org"], 9, datetime.now(UTC))
    (tmp_path / "server.crt").write_bytes(issued.certificate)
    (tmp_path / "server.key").write_bytes(issued.key)
    check_certificate(tmp_path, True, print)
    assert "the server's certificate expires on" in capsys.readouterr().out


def _as_another_site(key_file: Path, name: str, folder: Path) -> Path:
    request = folder / f"{name}-again.csr"
    signed = _request(name, load_key(key_file), hashes.SHA384())
    request.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return request


def _request(name: str, key: object, algorithm: hashes.HashAlgorithm | None) -> x509.CertificateSigningRequest:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)  # type: ignore[arg-type]
