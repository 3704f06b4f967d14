"""What the components are told."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from local_cluster import node
from local_cluster.network import addresses
from local_cluster.node import Node

NODE = Node("test", Path("/cache/clusters/test"), addresses("test"))
Command = Callable[[Node], list[str]]
COMMANDS: list[Command] = [
    node.etcd,
    node.kube_apiserver,
    node.kube_controller_manager,
    node.kube_scheduler,
    node.kubelet,
    node.kube_proxy,
    node.versitygw,
]


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        (node.etcd, "--listen-client-urls=http://127.0.0.1:2379"),
        (node.kube_apiserver, "--authorization-mode=Node,RBAC"),
        (node.kube_apiserver, f"--bind-address={NODE.addresses.node}"),
        (node.kube_apiserver, f"--advertise-address={NODE.addresses.node}"),
        (node.kube_apiserver, "--kubelet-preferred-address-types=InternalIP"),
        (node.kube_controller_manager, "--root-ca-file=/cache/clusters/test/pki/ca.crt"),
        (node.kubelet, f"--node-ip={NODE.addresses.node}"),
        (node.kubelet, "--hostname-override=test"),
        (node.versitygw, f"--port={NODE.addresses.node}:7070"),
    ],
)
def test_arguments(command: Command, argument: str) -> None:
    assert argument in command(NODE)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.__name__))
def test_no_argument_holds_a_secret(command: Command) -> None:
    assert not [argument for argument in command(NODE) if "token=" in argument or "secret" in argument]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("failCgroupV1", False),
        ("failSwapOn", False),
        ("evictionHard", {}),
        ("imageGCHighThresholdPercent", 100),
        ("cgroupRoot", "/ftj-test"),
        ("authorization", {"mode": "Webhook"}),
    ],
)
def test_kubelet_settings(setting: str, value: object) -> None:
    assert json.loads(node.kubelet_config(NODE))[setting] == value


def test_kube_proxy_leaves_the_machines_conntrack_alone() -> None:
    assert json.loads(node.kube_proxy_config(NODE))["conntrack"] == {"maxPerCore": 0, "min": 0}


def test_every_user_has_a_line_with_a_token_of_its_own() -> None:
    tokens = {user: f"token-{user}" for user in node.USERS}
    lines = node.tokens_csv(NODE, tokens).splitlines()
    assert 'token-kubelet,system:node:test,system:node:test,"system:nodes"' in lines
    assert len(lines) == len(node.USERS)


def test_kubeconfig_points_at_this_cluster() -> None:
    config = json.loads(node.kubeconfig(NODE, "secret"))
    assert config["clusters"][0]["cluster"]["server"] == NODE.addresses.api
    assert config["users"][0]["user"] == {"token": "secret"}


def test_the_certificate_is_valid_for_what_pods_and_host_dial() -> None:
    names = node.server_names(NODE).split(",")
    assert {f"IP:{NODE.addresses.node}", "IP:10.96.0.1", "DNS:kubernetes.default.svc"} <= set(names)
