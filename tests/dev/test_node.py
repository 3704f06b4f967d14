"""Tests of the command lines and configuration files of a node's components."""

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
def test_component_command_has_argument(command: Command, argument: str) -> None:
    assert argument in command(NODE)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.__name__))
def test_component_command_holds_no_secret(command: Command) -> None:
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
def test_kubelet_config_has_setting(setting: str, value: object) -> None:
    assert json.loads(node.render_kubelet_config(NODE))[setting] == value


def test_kube_proxy_config_leaves_conntrack_unchanged() -> None:
    assert json.loads(node.render_kube_proxy_config(NODE))["conntrack"] == {"maxPerCore": 0, "min": 0}


def test_tokens_csv_has_one_line_per_user() -> None:
    tokens = {user: f"token-{user}" for user in node.USERS}
    lines = node.render_tokens_csv(NODE, tokens).splitlines()
    assert 'token-kubelet,system:node:test,system:node:test,"system:nodes"' in lines
    assert len(lines) == len(node.USERS)


def test_kubeconfig_points_at_cluster() -> None:
    config = json.loads(node.render_kubeconfig(NODE, "secret"))
    assert config["clusters"][0]["cluster"]["server"] == NODE.addresses.api
    assert config["users"][0]["user"] == {"token": "secret"}


def test_server_names_cover_pod_and_host_addresses() -> None:
    names = node.build_subject_alt_names(NODE).split(",")
    assert {f"IP:{NODE.addresses.node}", "IP:10.96.0.1", "DNS:kubernetes.default.svc"} <= set(names)
