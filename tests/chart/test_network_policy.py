"""Tests of the rendered network policies: allowed connections from and to trainer pods. Enforcement is up to the
network plugin of a cluster; that of the local cluster does not enforce them."""

import ipaddress
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from finetune_operator.api.labels import JOB_LABEL, TASK_LABEL
from finetune_trainer.contract import PROGRESS_PORT

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

TRAINER_SELECTOR = {"matchExpressions": [{"key": JOB_LABEL, "operator": "Exists"}]}
METADATA_ADDRESSES = [
    "169.254.169.254", "169.254.170.23", "169.254.170.2", "100.100.100.200", "168.63.129.16",
    "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fe80::a9fe:a9fe",
]  # fmt: skip
ANY_DESTINATION = {"destinations": [{"cidr": "0.0.0.0/0", "ports": [443, 9000]}, {"cidr": "::/0", "ports": [443]}]}


@pytest.fixture
def policies(render: Render) -> Callable[..., dict[str, Manifest]]:
    """The policies by their namespace."""

    def render_policies(policy: Mapping[str, Any], **values: Any) -> dict[str, Manifest]:
        objects = render({"networkPolicy": {"enabled": True, "namespaces": ["team-a"], **policy}, **values})
        network_policies = [manifest for manifest in objects if manifest["kind"] == "NetworkPolicy"]
        return {
            network_policy["metadata"]["namespace"]: network_policy["spec"]
            for network_policy in network_policies
            if network_policy["spec"]["podSelector"] == TRAINER_SELECTOR
        }

    return render_policies


def test_network_policy_of_task_pods_allows_the_destinations_of_trainers_alone(render: Render) -> None:
    policy = {"enabled": True, "namespaces": ["team-a"], "allowMetadata": True, **ANY_DESTINATION}
    objects = render({"networkPolicy": policy})
    specs = [manifest["spec"] for manifest in objects if manifest["kind"] == "NetworkPolicy"]
    trainers = next(spec for spec in specs if spec["podSelector"] == TRAINER_SELECTOR)
    (tasks,) = [spec for spec in specs if spec != trainers]
    assert tasks["podSelector"] == {"matchExpressions": [{"key": TASK_LABEL, "operator": "Exists"}]}
    assert (tasks["policyTypes"], tasks["ingress"]) == (["Ingress", "Egress"], [])
    between_trainers = [{"to": [{"podSelector": TRAINER_SELECTOR}]}]
    assert trainers["egress"] == between_trainers + tasks["egress"]


def list_ip_blocks(spec: Manifest) -> list[tuple[Manifest, list[int]]]:
    """Blocks of addresses that may be reached, with the ports."""
    return [
        (peer["ipBlock"], [port["port"] for port in rule["ports"]])
        for rule in spec["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]


def is_reachable(spec: Manifest, address: str) -> bool:
    """Return whether any rule allows the address, on any port."""
    ip = ipaddress.ip_address(address)
    return any(
        ip in ipaddress.ip_network(block["cidr"])
        and not any(ip in ipaddress.ip_network(excluded) for excluded in block.get("except", []))
        for block, _ in list_ip_blocks(spec)
    )


def test_network_policy_default_renders_none(render: Render) -> None:
    assert not [manifest for manifest in render({"watchNamespaces": ["team-a"]}) if manifest["kind"] == "NetworkPolicy"]


def test_network_policy_renders_one_per_named_namespace(policies: Callable[..., dict[str, Manifest]]) -> None:
    assert set(policies({"namespaces": ["team-a", "team-b"]})) == {"team-a", "team-b"}
    assert set(policies({"namespaces": []}, watchNamespaces=["team-c"])) == {"team-c"}
    assert set(policies({}, watchNamespaces=["team-c"])) == {"team-a"}
    assert set(policies({"namespaces": ["123"]})) == {"123"}


def test_network_policy_cluster_scope_without_namespaces_fails(
    template: Callable[[Mapping[str, Any]], subprocess.CompletedProcess[str]],
) -> None:
    result = template({"networkPolicy": {"enabled": True}})
    assert result.returncode != 0
    assert "networkPolicy.enabled needs networkPolicy.namespaces or watchNamespaces" in result.stderr


def test_network_policy_selects_trainers_for_ingress_and_egress(policies: Callable[..., dict[str, Manifest]]) -> None:
    spec = policies({})["team-a"]
    assert spec["podSelector"] == TRAINER_SELECTOR
    assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_network_policy_ingress_allows_operator_and_peers_only(
    policies: Callable[..., dict[str, Manifest]], deployment: Callable[..., Manifest]
) -> None:
    operator_rule, peers = policies({})["team-a"]["ingress"]
    (operator,) = operator_rule["from"]
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "finetune-system"}
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert operator["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(operator["podSelector"]["matchLabels"]) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
    assert operator_rule["ports"] == [{"protocol": "TCP", "port": PROGRESS_PORT}]
    assert peers == {"from": [{"podSelector": TRAINER_SELECTOR}]}


def test_network_policy_ingress_allows_scrapers_on_same_port(policies: Callable[..., dict[str, Manifest]]) -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    operator_rule, _ = policies({"scrapers": [prometheus]})["team-a"]["ingress"]
    assert operator_rule["from"][1:] == [prometheus]


def test_network_policy_egress_allows_peers_dns_and_public_https_only(
    policies: Callable[..., dict[str, Manifest]],
) -> None:
    spec = policies({})["team-a"]
    peers, names, public = spec["egress"]
    assert peers == {"to": [{"podSelector": TRAINER_SELECTOR}]}
    (resolver,) = names["to"]
    assert resolver["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kube-system"}
    assert resolver["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert {(dns_port["protocol"], dns_port["port"]) for dns_port in names["ports"]} == {
        (protocol, port) for protocol in ("UDP", "TCP") for port in (53, 5353)
    }
    assert public["ports"] == [{"protocol": "TCP", "port": 443}]
    assert is_reachable(spec, "52.216.1.1")
    for private in ("10.96.0.1", "172.16.3.4", "192.168.1.1", "100.64.1.1", *METADATA_ADDRESSES):
        assert not is_reachable(spec, private), private


def test_network_policy_destinations_by_selector_and_cidr(policies: Callable[..., dict[str, Manifest]]) -> None:
    minio = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "minio"}}, "podSelector": {}}
    spec = policies({"destinations": [{**minio, "ports": [9000]}, {"cidr": "10.1.2.0/24", "ports": [443, 8443]}]})
    inside, outside = spec["team-a"]["egress"][2:]
    assert inside == {"to": [minio], "ports": [{"protocol": "TCP", "port": 9000}]}
    assert outside["to"] == [{"ipBlock": {"cidr": "10.1.2.0/24"}}]
    assert [rule_port["port"] for rule_port in outside["ports"]] == [443, 8443]


@pytest.mark.parametrize("address", METADATA_ADDRESSES)
def test_network_policy_any_destination_excludes_metadata(
    policies: Callable[..., dict[str, Manifest]], address: str
) -> None:
    assert not is_reachable(policies(ANY_DESTINATION)["team-a"], address)


def test_network_policy_allow_metadata_opens_only_its_ports(policies: Callable[..., dict[str, Manifest]]) -> None:
    spec = policies({**ANY_DESTINATION, "allowMetadata": True})["team-a"]
    assert is_reachable(spec, "169.254.169.254")
    metadata_blocks = [
        (block["cidr"], ports) for block, ports in list_ip_blocks(spec) if block["cidr"].startswith("169.254")
    ]
    assert metadata_blocks == [(f"169.254.{suffix}/32", [80, 988]) for suffix in ("169.254", "170.23", "169.252")]


def test_network_policy_exceptions_lie_within_block(policies: Callable[..., dict[str, Manifest]]) -> None:
    """The API server rejects the policy otherwise."""
    for block, _ in list_ip_blocks(policies(ANY_DESTINATION)["team-a"]) + list_ip_blocks(policies({})["team-a"]):
        network = ipaddress.ip_network(block["cidr"])
        assert all(ipaddress.ip_network(excluded).subnet_of(network) for excluded in block.get("except", []))


@pytest.mark.parametrize("address", METADATA_ADDRESSES)
def test_values_schema_cidr_with_metadata_is_rejected(chart: Path, address: str) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())["definitions"]["cidr"]
    address_network = ipaddress.ip_network(address)
    for prefix in range(1, address_network.max_prefixlen + 1):
        enclosing = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
        for text in {str(enclosing), f"{address}/{prefix}"}:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(text, schema)


def test_values_schema_cidr_without_metadata_is_accepted(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())["definitions"]["cidr"]
    for text in ("10.0.0.0/8", "52.216.0.0/15", "192.168.4.0/24", "169.48.0.0/16", "203.0.113.7/32", "2600:1f00::/48"):
        jsonschema.validate(text, schema)


@pytest.fixture
def operator_policy(render: Render) -> Callable[..., Manifest]:
    """The policy of the operator pods."""

    def render_policy(policy: Mapping[str, Any], **values: Any) -> Manifest:
        objects = render({"operatorNetworkPolicy": {"enabled": True, **policy}, **values})
        (match,) = (manifest for manifest in objects if manifest["kind"] == "NetworkPolicy")
        return match

    return render_policy


def test_operator_policy_selects_operator_pods(
    operator_policy: Callable[..., Manifest], deployment: Callable[..., Manifest]
) -> None:
    policy = operator_policy({})
    assert policy["metadata"]["namespace"] == "finetune-system"
    assert policy["spec"]["podSelector"] == deployment()["spec"]["selector"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_operator_policy_ingress_allows_scrapers_only(operator_policy: Callable[..., Manifest]) -> None:
    assert "ingress" not in operator_policy({})["spec"]
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    spec = operator_policy({"scrapers": [prometheus]}, metrics={"port": 9100})["spec"]
    assert spec["ingress"] == [{"from": [prometheus], "ports": [{"protocol": "TCP", "port": 9100}]}]


WATCHED = {
    "cluster": ([], {}),
    "namespaces": (
        ["123"],
        {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["123"]}]},
    ),
}


@pytest.mark.parametrize(("watched", "selected"), WATCHED.values(), ids=WATCHED)
def test_operator_policy_egress_allows_trainers_api_server_and_dns(
    operator_policy: Callable[..., Manifest], watched: list[str], selected: Manifest
) -> None:
    api_server = [{"cidr": "10.1.2.3/32", "ports": [6443]}]
    trainers, server, names = operator_policy({"apiServer": api_server}, watchNamespaces=watched)["spec"]["egress"]
    assert trainers == {
        "to": [{"podSelector": TRAINER_SELECTOR, "namespaceSelector": selected}],
        "ports": [{"protocol": "TCP", "port": PROGRESS_PORT}],
    }
    assert server == {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"protocol": "TCP", "port": 6443}]}
    assert {port["port"] for port in names["ports"]} == {53, 5353}
