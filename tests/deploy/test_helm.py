"""The Helm charts: rendered, held against Kubernetes' own schemas, and their network policies worked through."""

from __future__ import annotations

import ipaddress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.deploy.tools import DEPLOY

pytestmark = pytest.mark.deploy

KUBERNETES = ("1.29", "1.33")
SERVER_ADDRESS, PROXY_ADDRESS = "192.0.2.10", "192.0.2.80"
VALUES: dict[str, dict[str, Any]] = {
    "fedvox-site": {
        "image": {"repository": "registry.example.org/fedvox-client"},
        "server": {"cidrs": [f"{SERVER_ADDRESS}/32"]},
        "kit": {"existingSecret": "north-kit"},
        "key": {"existingSecret": "north-key"},
        "data": {"existingClaim": "scans"},
    },
    "fedvox-server": {
        "image": {"repository": "registry.example.org/fedvox-server"},
        "kit": {"existingSecret": "heart-kit"},
        "sites": {"existingSecret": "heart-sites"},
    },
}
FULL: dict[str, dict[str, Any]] = {
    "fedvox-site": {
        "image": {"digest": "sha256:" + 64 * "a"},
        "imagePullSecrets": [{"name": "registry"}],
        "siteFile": {"existingConfigMap": "limits"},
        "data": {"subPath": "hippocampus"},
        "state": {"existingClaim": "state"},
        "ledger": {"existingClaim": "ledger"},
        "cache": {"existingClaim": "cache"},
        "shared": {"size": "40Gi", "storageClassName": "local"},
        "courier": {"state": {"storageClassName": "fast"}},
        "outboundProxy": {"existingSecret": "proxy", "cidrs": [f"{PROXY_ADDRESS}/32"], "port": 8080},
        "runner": {
            "device": "cuda",
            "gpu": {"count": 1, "runtimeClassName": "nvidia"},
            "nodeSelector": {"gpu": "yes"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
        },
        "dns": {"enabled": False},
    },
    "fedvox-server": {
        "initialModel": {"existingClaim": "models", "subPath": "pretrained"},
        "run": {"existingClaim": "run"},
        "gateway": {
            "service": {"type": "NodePort", "nodePort": 30443, "annotations": {"a": "b"}},
            "allowedCidrs": ["198.51.100.0/24"],
        },
    },
}


def helm() -> Any:
    return pytest.importorskip("helm_python", reason="helm-python-sdk is not installed (extra deploy)")


def kubernetes() -> Any:
    return pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (extra deploy)")


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = deepcopy(base)
    for key, value in changes.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and key in result else value
    return result


def render(chart: str, changes: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    with helm().Chart.load(str(DEPLOY / "helm" / chart)) as loaded:
        values = merged(VALUES[chart], changes or {})
        loaded.validate_schema(values)
        files = loaded.render(values, name="heart.north", namespace="fedvox")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


CASES = [pytest.param(chart, changes, id=f"{chart}-{size}") for size, all_ in
         (("least", {name: {} for name in VALUES}), ("full", FULL)) for chart, changes in all_.items()]  # fmt: skip


@pytest.mark.parametrize(("chart", "changes"), CASES)
def test_charts_pass_helms_and_kubernetes_own_checks(chart: str, changes: dict[str, Any]) -> None:
    findings = helm().lint(str(DEPLOY / "helm" / chart), merged(VALUES[chart], changes), strict=True)
    assert findings["errors"] == []
    documents = render(chart, changes)
    assert len(documents) >= (6 if chart == "fedvox-site" else 3)
    for document in documents:
        for version in KUBERNETES:
            kubernetes().validate(document, version, strict=True)


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Component -> pod template."""
    templates = [document["spec"]["template"] for document in documents if document["kind"] in ("Deployment", "Job")]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}


def serving(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """The containers of a pod that stay: the ordinary ones, and sidecars."""
    sidecars = [made for made in pod["spec"].get("initContainers", []) if made.get("restartPolicy") == "Always"]
    return [*sidecars, *pod["spec"]["containers"]]


@pytest.mark.parametrize(("chart", "changes"), CASES)
def test_every_container_may_do_as_little_as_kubernetes_can_say(chart: str, changes: dict[str, Any]) -> None:
    for pod in pods(render(chart, changes)).values():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert isinstance(spec["securityContext"]["runAsUser"], int)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]
        assert all("livenessProbe" in container for container in serving(pod))
        for volume in spec["volumes"]:
            assert "hostPath" not in volume
            assert "emptyDir" not in volume or volume["emptyDir"].get("sizeLimit")


def mounted_secrets(pod: dict[str, Any]) -> set[tuple[str, str]]:
    """(Secret, key) of all that a pod gets; the key is ``*`` where all of them are."""
    found = set()
    for volume in pod["spec"]["volumes"]:
        sources = [(source["secret"], "name") for source in volume.get("projected", {}).get("sources", [])]
        for source, name in [*sources, *([(volume["secret"], "secretName")] if "secret" in volume else [])]:
            found |= {(source[name], item["key"]) for item in source.get("items", [{"key": "*"}])}
    return found


def claims(pod: dict[str, Any]) -> set[str]:
    volumes = pod["spec"]["volumes"]
    return {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}


def test_scans_and_the_sites_key_meet_in_no_pod() -> None:
    site = pods(render("fedvox-site"))
    assert ("north-key", "site.key") in mounted_secrets(site["courier"])
    assert not any(name == "north-key" or key in ("*", "site.key") for name, key in mounted_secrets(site["runner"]))
    assert "scans" in claims(site["runner"])
    assert "scans" not in claims(site["courier"])
    assert claims(site["runner"]) & claims(site["courier"]) == {"fedvox-heart-north-shared"}
    mounts = site["runner"]["spec"]["containers"][0]["volumeMounts"]
    assert next(mount for mount in mounts if mount["name"] == "data")["readOnly"] is True


@pytest.mark.parametrize("changes", [{}, FULL["fedvox-site"]], ids=["least", "full"])
def test_courier_and_runner_share_a_disk_of_one_node_on_which_both_run(changes: dict[str, Any]) -> None:
    documents = render("fedvox-site", changes)
    [shared] = [
        document
        for document in documents
        if document["kind"] == "PersistentVolumeClaim" and document["metadata"]["name"].endswith("-shared")
    ]
    assert shared["spec"]["accessModes"] == ["ReadWriteOnce"]
    site = pods(documents)
    [term] = site["courier"]["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"].items() <= site["runner"]["metadata"]["labels"].items()
    assert site["courier"]["spec"].get("tolerations") == site["runner"]["spec"].get("tolerations")


def test_gateway_and_server_share_a_pod_whose_job_ends_with_the_server() -> None:
    server = pods(render("fedvox-server"))["server"]
    assert [container["name"] for container in serving(server)] == ["gateway", "server"]
    assert [container["name"] for container in server["spec"]["containers"]] == ["server"], "a Job ends with these"
    for container in serving(server):
        assert {"kit", "sites", "run"} <= {mount["name"] for mount in container["volumeMounts"]}
        assert "--run=/run/fedvox/run" in container["args"]
    gateway, rounds = serving(server)
    assert "tcpSocket" in gateway["livenessProbe"] and "grpc" in rounds["livenessProbe"]
    assert "--without-gateway" in rounds["args"]


def test_no_secret_is_in_an_environment_or_on_a_command_line() -> None:
    for chart in VALUES:
        for pod in pods(render(chart, FULL[chart])).values():
            for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
                given = [variable["name"] for variable in container.get("env", []) if "valueFrom" in variable]
                # With a password in it at worst, as every program reads it; it is a Secret's in the chart.
                assert given == (["HTTPS_PROXY"] if container["name"] == "courier" else [])
                assert "envFrom" not in container
        assert not [document for document in render(chart, FULL[chart]) if document["kind"] == "Secret"]


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod by its labels and its namespace's, or an address outside."""

    labels: tuple[tuple[str, str], ...] = ()
    namespace: str = "fedvox"
    address: str = ""


def matches(peer: dict[str, Any], end: End) -> bool:
    if "ipBlock" in peer:
        return bool(end.address) and ipaddress.ip_address(end.address) in ipaddress.ip_network(peer["ipBlock"]["cidr"])
    if end.address:
        return False
    space = peer.get("namespaceSelector")
    spaces = {"kubernetes.io/metadata.name": end.namespace}
    right_space = end.namespace == "fedvox" if space is None else space["matchLabels"].items() <= spaces.items()
    return right_space and peer.get("podSelector", {}).get("matchLabels", {}).items() <= dict(end.labels).items()


def allowed(policies: list[dict[str, Any]], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether Kubernetes lets a connection through: both ends must allow it; who has no policy allows everything."""

    def one_side(direction: str, own: End, other: End) -> bool:
        key = "from" if direction == "Ingress" else "to"
        applying = [
            policy["spec"]
            for policy in policies
            if not own.address
            and own.namespace == "fedvox"
            and direction in policy["spec"]["policyTypes"]
            and policy["spec"]["podSelector"]["matchLabels"].items() <= dict(own.labels).items()
        ]
        rules = [rule for spec in applying for rule in spec.get(direction.lower()) or []]
        return not applying or any(
            (not rule.get(key) or any(matches(peer, other) for peer in rule[key]))
            and (
                not rule.get("ports")
                or any((p["port"], p.get("protocol", "TCP")) == (port, protocol) for p in rule["ports"])
            )
            for rule in rules
        )

    return one_side("Egress", source, target) and one_side("Ingress", target, source)


def ends(chart: str, changes: dict[str, Any] | None = None) -> tuple[list[dict[str, Any]], dict[str, End]]:
    documents = render(chart, changes)
    found = {name: End(tuple(pod["metadata"]["labels"].items())) for name, pod in pods(documents).items()}
    outside = {
        "stranger": End((("app", "other"),)),
        "dns": End((("k8s-app", "kube-dns"),), "kube-system"),
        "server outside": End(address=SERVER_ADDRESS),
        "outbound proxy": End(address=PROXY_ADDRESS),
        "internet": End(address="198.51.100.7"),
        "neighbour": End(address="203.0.113.9"),
    }
    return [document for document in documents if document["kind"] == "NetworkPolicy"], found | outside


def reached(chart: str, changes: dict[str, Any], ports: tuple[int, ...]) -> set[tuple[str, str, int, str]]:
    """(from, to, port, protocol) of all connections that the policies let through, from or to a pod of the chart."""
    policies, end = ends(chart, changes)
    own = set(pods(render(chart, changes)))
    return {
        (source, target, port, protocol)
        for source in end
        for target in end
        for port in ports
        for protocol in ("TCP", "UDP")
        if {source, target} & own and allowed(policies, end[source], end[target], port, protocol)
    }


def test_the_courier_reaches_its_server_and_the_runner_nothing() -> None:
    names = {("courier", "dns", 53, "UDP"), ("courier", "dns", 53, "TCP")}
    ports = (9443, 443, 53, 80, 8080)
    assert reached("fedvox-site", {}, ports) == {("courier", "server outside", 9443, "TCP"), *names}
    # With the hospital's proxy in between, and no name service.
    assert reached("fedvox-site", FULL["fedvox-site"], ports) == {("courier", "outbound proxy", 8080, "TCP")}


def test_only_the_gateways_port_is_reachable_and_the_pod_reaches_nothing() -> None:
    for changes, outside in (
        ({}, {"internet", "neighbour", "stranger", "dns", "server outside", "outbound proxy", "server"}),
        (FULL["fedvox-server"], {"internet"}),
    ):
        found = reached("fedvox-server", changes, (9095, 9443, 443, 53))
        # A pod of the chart may not open anything, so it does not reach itself by its address either.
        assert found == {(source, "server", 9443, "TCP") for source in outside - {"server"}}


BAD_VALUES = [
    ("fedvox-site", {"server": {"cidrs": ["0.0.0.0/0"]}}, "cidrs"),
    ("fedvox-site", {"server": {"cidrs": []}}, "cidrs"),
    ("fedvox-site", {"server": {"cidrs": ["federation.example.org"]}}, "cidrs"),
    ("fedvox-site", {"key": {"existingSecret": ""}}, "key"),
    ("fedvox-site", {"key": {"value": "-----BEGIN"}}, "key"),
    ("fedvox-site", {"image": {"tag": "latest"}}, "tag"),
    ("fedvox-site", {"security": {"runAsUser": 0}}, "runAsUser"),
    ("fedvox-site", {"security": {"privileged": True}}, "privileged"),
    ("fedvox-site", {"data": {"subPath": "../other"}}, "subPath"),
    ("fedvox-site", {"runner": {"gpus": 1}}, "gpus"),
    ("fedvox-server", {"sites": {"existingSecret": ""}}, "sites"),
    ("fedvox-site", {"outboundProxy": {"existingSecret": "proxy"}}, "cidrs"),
    ("fedvox-site", {"outboundProxy": {"url": "http://user:password@proxy:3128"}}, "url"),
    ("fedvox-server", {"gateway": {"service": {"type": "ExternalName"}}}, "type"),
    ("fedvox-server", {"server": {"resources": {"requests": {"cpu": "1"}, "limits": {"memory": None}}}}, "memory"),
]


@pytest.mark.parametrize(("chart", "changes", "named"), BAD_VALUES)
def test_values_that_would_be_unsafe_or_mistyped_are_refused(chart: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(helm().HelmError, match=named):
        render(chart, changes)
