"""What the components are told."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from local_cluster import node
from local_cluster.network import compute_addresses
from local_cluster.node import Node

NODE = Node("test", Path("/cache/clusters/test"), compute_addresses("test"))
Command = Callable[[Node], list[str]]
COMMANDS: list[Command] = [
    node.build_etcd_command,
    node.build_kube_apiserver_command,
    node.build_kube_controller_manager_command,
    node.build_kube_scheduler_command,
    node.build_kubelet_command,
    node.build_kube_proxy_command,
    node.build_versitygw_command,
]


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        (node.build_etcd_command, "--listen-client-urls=http://127.0.0.1:2379"),
        (node.build_kube_apiserver_command, "--authorization-mode=Node,RBAC"),
        (node.build_kube_apiserver_command, f"--bind-address={NODE.addresses.node}"),
        (node.build_kube_apiserver_command, f"--advertise-address={NODE.addresses.node}"),
        (node.build_kube_apiserver_command, "--kubelet-preferred-address-types=InternalIP"),
        (node.build_kube_controller_manager_command, "--root-ca-file=/cache/clusters/test/pki/ca.crt"),
        (node.build_kubelet_command, f"--node-ip={NODE.addresses.node}"),
        (node.build_kubelet_command, "--hostname-override=test"),
        (node.build_versitygw_command, f"--port={NODE.addresses.node}:7070"),
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
    assert json.loads(node.render_kubelet_config(NODE))[setting] == value


def test_kube_proxy_leaves_the_machines_conntrack_alone() -> None:
    assert json.loads(node.render_kube_proxy_config(NODE))["conntrack"] == {"maxPerCore": 0, "min": 0}


def test_every_user_has_a_line_with_a_token_of_its_own() -> None:
    tokens = {user: f"token-{user}" for user in node.USERS}
    lines = node.render_tokens_csv(NODE, tokens).splitlines()
    assert 'token-kubelet,system:node:test,system:node:test,"system:nodes"' in lines
    assert len(lines) == len(node.USERS)


def test_kubeconfig_points_at_this_cluster() -> None:
    config = json.loads(node.render_kubeconfig(NODE, "secret"))
    assert config["clusters"][0]["cluster"]["server"] == NODE.addresses.api
    assert config["users"][0]["user"] == {"token": "secret"}


def test_the_certificate_is_valid_for_what_pods_and_host_dial() -> None:
    names = node.build_subject_alt_names(NODE).split(",")
    assert {f"IP:{NODE.addresses.node}", "IP:10.96.0.1", "DNS:kubernetes.default.svc"} <= set(names)
