"""What trainer pods may reach and who may reach them, as the rendered objects say. Whether a cluster enforces that is
its network plugin's: none of the local cluster does."""

import ipaddress
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from finetune_operator.resources.job import JOB_LABEL
from finetune_trainer.contract import PROGRESS_PORT

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

TRAINERS = {"matchExpressions": [{"key": JOB_LABEL, "operator": "Exists"}]}
METADATA = [
    "169.254.169.254", "169.254.170.23", "169.254.170.2", "100.100.100.200", "168.63.129.16",
    "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fe80::a9fe:a9fe",
]  # fmt: skip
EVERYWHERE = {"destinations": [{"cidr": "0.0.0.0/0", "ports": [443, 9000]}, {"cidr": "::/0", "ports": [443]}]}


@pytest.fixture
def policies(render: Render) -> Callable[..., dict[str, Manifest]]:
    """The policies by their namespace."""

    def of(policy: Mapping[str, Any], **values: Any) -> dict[str, Manifest]:
        found = render({"networkPolicy": {"enabled": True, "namespaces": ["team-a"], **policy}, **values})
        every = [each for each in found if each["kind"] == "NetworkPolicy"]
        return {each["metadata"]["namespace"]: each["spec"] for each in every}

    return of


def blocks(spec: Manifest) -> list[tuple[Manifest, list[int]]]:
    """Blocks of addresses that may be reached, with the ports."""
    return [
        (peer["ipBlock"], [port["port"] for port in rule["ports"]])
        for rule in spec["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]


def may_reach(spec: Manifest, address: str) -> bool:
    """Whether any rule lets it through, on whatever port."""
    wanted = ipaddress.ip_address(address)
    return any(
        wanted in ipaddress.ip_network(block["cidr"])
        and not any(wanted in ipaddress.ip_network(each) for each in block.get("except", []))
        for block, _ in blocks(spec)
    )


def test_none_unless_asked_for(render: Render) -> None:
    assert not [each for each in render({"watchNamespaces": ["team-a"]}) if each["kind"] == "NetworkPolicy"]


def test_one_in_each_namespace_that_is_named(policies: Callable[..., dict[str, Manifest]]) -> None:
    assert set(policies({"namespaces": ["team-a", "team-b"]})) == {"team-a", "team-b"}
    assert set(policies({"namespaces": []}, watchNamespaces=["team-c"])) == {"team-c"}
    assert set(policies({}, watchNamespaces=["team-c"])) == {"team-a"}
    assert set(policies({"namespaces": ["123"]})) == {"123"}


def test_a_whole_cluster_has_to_name_its_namespaces(
    template: Callable[[Mapping[str, Any]], subprocess.CompletedProcess[str]],
) -> None:
    refused = template({"networkPolicy": {"enabled": True}})
    assert refused.returncode != 0
    assert "networkPolicy.enabled needs networkPolicy.namespaces or watchNamespaces" in refused.stderr


def test_it_selects_trainers_in_both_directions(policies: Callable[..., dict[str, Manifest]]) -> None:
    spec = policies({})["team-a"]
    assert spec["podSelector"] == TRAINERS
    assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_in_come_the_operator_and_the_peers_alone(
    policies: Callable[..., dict[str, Manifest]], deployment: Callable[..., Manifest]
) -> None:
    asking, peers = policies({})["team-a"]["ingress"]
    (operator,) = asking["from"]
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "finetune-system"}
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert operator["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(operator["podSelector"]["matchLabels"]) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
    assert asking["ports"] == [{"protocol": "TCP", "port": PROGRESS_PORT}]
    assert peers == {"from": [{"podSelector": TRAINERS}]}


def test_scrapers_come_in_by_the_same_port(policies: Callable[..., dict[str, Manifest]]) -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    asking, _ = policies({"scrapers": [prometheus]})["team-a"]["ingress"]
    assert asking["from"][1:] == [prometheus]


def test_out_go_peers_names_and_public_https_alone(policies: Callable[..., dict[str, Manifest]]) -> None:
    spec = policies({})["team-a"]
    peers, names, public = spec["egress"]
    assert peers == {"to": [{"podSelector": TRAINERS}]}
    (resolver,) = names["to"]
    assert resolver["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kube-system"}
    assert resolver["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert {(each["protocol"], each["port"]) for each in names["ports"]} == {
        (protocol, port) for protocol in ("UDP", "TCP") for port in (53, 5353)
    }
    assert public["ports"] == [{"protocol": "TCP", "port": 443}]
    assert may_reach(spec, "52.216.1.1")
    for private in ("10.96.0.1", "172.16.3.4", "192.168.1.1", "100.64.1.1", *METADATA):
        assert not may_reach(spec, private), private


def test_a_store_in_the_cluster_and_one_beside_it(policies: Callable[..., dict[str, Manifest]]) -> None:
    minio = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "minio"}}, "podSelector": {}}
    spec = policies({"destinations": [{**minio, "ports": [9000]}, {"cidr": "10.1.2.0/24", "ports": [443, 8443]}]})
    inside, beside = spec["team-a"]["egress"][2:]
    assert inside == {"to": [minio], "ports": [{"protocol": "TCP", "port": 9000}]}
    assert beside["to"] == [{"ipBlock": {"cidr": "10.1.2.0/24"}}]
    assert [each["port"] for each in beside["ports"]] == [443, 8443]


@pytest.mark.parametrize("address", METADATA)
def test_metadata_is_never_part_of_everywhere(policies: Callable[..., dict[str, Manifest]], address: str) -> None:
    assert not may_reach(policies(EVERYWHERE)["team-a"], address)


def test_metadata_only_if_asked_for_and_by_its_ports(policies: Callable[..., dict[str, Manifest]]) -> None:
    spec = policies({**EVERYWHERE, "allowMetadata": True})["team-a"]
    assert may_reach(spec, "169.254.169.254")
    found = [(block["cidr"], ports) for block, ports in blocks(spec) if block["cidr"].startswith("169.254")]
    assert found == [(f"169.254.{each}/32", [80, 988]) for each in ("169.254", "170.23", "169.252")]


def test_what_is_excluded_lies_within_its_block(policies: Callable[..., dict[str, Manifest]]) -> None:
    """The API server refuses the whole policy otherwise."""
    for block, _ in blocks(policies(EVERYWHERE)["team-a"]) + blocks(policies({})["team-a"]):
        whole = ipaddress.ip_network(block["cidr"])
        assert all(ipaddress.ip_network(each).subnet_of(whole) for each in block.get("except", []))


@pytest.mark.parametrize("address", METADATA)
def test_no_block_of_addresses_holds_metadata(chart: Path, address: str) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())["definitions"]["cidr"]
    whole = ipaddress.ip_network(address)
    for prefix in range(1, whole.max_prefixlen + 1):
        around = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
        for text in {str(around), f"{address}/{prefix}"}:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(text, schema)


def test_other_blocks_are_let_through(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())["definitions"]["cidr"]
    for text in ("10.0.0.0/8", "52.216.0.0/15", "192.168.4.0/24", "169.48.0.0/16", "203.0.113.7/32", "2600:1f00::/48"):
        jsonschema.validate(text, schema)
