"""Command lines and configuration files of a node's components. This module runs nothing and writes nothing."""

import json
from dataclasses import dataclass
from pathlib import Path

from local_cluster import paths
from local_cluster.network import (
    API_PORT,
    KUBERNETES_SERVICE,
    POD_CIDR,
    S3_PORT,
    SERVICE_CIDR,
    Addresses,
    compute_addresses,
)

ETCD_URL = "http://127.0.0.1:2379"
_ETCD_PEER_URL = "http://127.0.0.1:2380"
CONTAINERD_SOCKET = Path("/run/containerd/containerd.sock")  # in the supervisor's mount namespace
REGION = "us-east-1"
# Clients of the API server: the user name, and the group that grants their permissions.
USERS = {
    "admin": ("admin", "system:masters"),
    "kubelet": ("system:node:{node}", "system:nodes"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
}


@dataclass(frozen=True)
class Node:
    """The node of a cluster: its name, its folder and its addresses."""

    name: str
    folder: Path
    addresses: Addresses

    def pki_path(self, file_name: str) -> Path:
        return self.folder / "pki" / file_name

    def kubeconfig_path(self, user: str) -> Path:
        return self.folder / f"{user}.kubeconfig"

    def config_path(self, file_name: str) -> Path:
        return self.folder / "config" / file_name

    @property
    def cgroup(self) -> str:
        return f"/ftj-{self.name}"


def create_node(name: str) -> Node:
    """Return the node of the cluster with this name."""
    return Node(name, paths.get_cluster_folder(name), compute_addresses(name))


def build_etcd_command(node: Node) -> list[str]:
    """Return the command of etcd. Its data does not outlive the cluster, so it does not wait for the disk."""
    return [
        "etcd",
        "--name=node",
        f"--data-dir={node.folder / 'etcd'}",
        f"--listen-client-urls={ETCD_URL}",
        f"--advertise-client-urls={ETCD_URL}",
        f"--listen-peer-urls={_ETCD_PEER_URL}",
        f"--initial-advertise-peer-urls={_ETCD_PEER_URL}",
        f"--initial-cluster=node={_ETCD_PEER_URL}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def build_kube_apiserver_command(node: Node) -> list[str]:
    """Return the command of the API server, which listens on the address that host and pods reach."""
    return [
        "kube-apiserver",
        f"--etcd-servers={ETCD_URL}",
        f"--bind-address={node.addresses.node}",
        f"--advertise-address={node.addresses.node}",
        f"--secure-port={API_PORT}",
        f"--tls-cert-file={node.pki_path('server.crt')}",
        f"--tls-private-key-file={node.pki_path('server.key')}",
        f"--client-ca-file={node.pki_path('ca.crt')}",
        f"--kubelet-client-certificate={node.pki_path('client.crt')}",
        f"--kubelet-client-key={node.pki_path('client.key')}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--token-auth-file={node.config_path('tokens.csv')}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        f"--service-account-signing-key-file={node.pki_path('service-account.key')}",
        f"--service-account-key-file={node.pki_path('service-account.key')}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--profiling=false",
    ]


def build_kube_controller_manager_command(node: Node) -> list[str]:
    """Return the command of the controller manager, without leader election."""
    return [
        "kube-controller-manager",
        f"--kubeconfig={node.kubeconfig_path('controller-manager')}",
        f"--cluster-cidr={POD_CIDR}",
        f"--service-account-private-key-file={node.pki_path('service-account.key')}",
        f"--root-ca-file={node.pki_path('ca.crt')}",
        "--use-service-account-credentials",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]


def build_kube_scheduler_command(node: Node) -> list[str]:
    """Return the command of the scheduler, without leader election."""
    kubeconfig_argument = f"--kubeconfig={node.kubeconfig_path('scheduler')}"
    return ["kube-scheduler", kubeconfig_argument, "--leader-elect=false", "--bind-address=127.0.0.1"]


def build_kubelet_command(node: Node) -> list[str]:
    """Return the command of the kubelet, whose node has the name of the cluster."""
    return [
        "kubelet",
        f"--kubeconfig={node.kubeconfig_path('kubelet')}",
        f"--config={node.config_path('kubelet.json')}",
        f"--node-ip={node.addresses.node}",
        f"--hostname-override={node.name}",
    ]


def render_kubelet_config(node: Node) -> str:
    """Return the kubelet's configuration.

    It allows cgroup v1 and swap, and does not evict pods or delete images if the disk is nearly full: the disk belongs
    to the host.
    """
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(node.pki_path("ca.crt"))},
            },
            "authorization": {"mode": "Webhook"},
            "address": node.addresses.node,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": node.cgroup,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "evictionHard": {},
            "imageGCHighThresholdPercent": 100,
            "clusterDNS": [node.addresses.node],
            "clusterDomain": "cluster.local",
            "shutdownGracePeriod": "0s",
        }
    )


def build_kube_proxy_command(node: Node) -> list[str]:
    """Return the command of kube-proxy."""
    return ["kube-proxy", f"--config={node.config_path('kube-proxy.json')}", f"--hostname-override={node.name}"]


def render_kube_proxy_config(node: Node) -> str:
    """Return kube-proxy's configuration. It does not change the conntrack limits, which apply to the complete host."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(node.kubeconfig_path("proxy"))},
            "mode": "iptables",
            "clusterCIDR": POD_CIDR,
            "conntrack": {"maxPerCore": 0, "min": 0},
        }
    )


def build_versitygw_command(node: Node) -> list[str]:
    """Return the command of the S3 server. Its keys are environment variables, because all users can read arguments."""
    port = f"--port={node.addresses.node}:{S3_PORT}"
    return ["versitygw", port, f"--region={REGION}", "--quiet", "posix", str(node.folder / "s3")]


def build_dns_command(node: Node) -> list[str]:
    """Return the command of the DNS server, to be run by Python."""
    return ["dns", "-m", "local_cluster.dns", node.name]


def render_cni_config() -> str:
    """Return the CNI configuration: a bridge for the pods, with addresses by host-local and port mappings."""
    pod_range = {"subnet": POD_CIDR}
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[pod_range]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins})


def render_kubeconfig(node: Node, token: str) -> str:
    """Return a kubeconfig that authenticates by a static token."""
    cluster = {"server": node.addresses.api, "certificate-authority": str(node.pki_path("ca.crt"))}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": node.name, "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": node.name, "context": {"cluster": node.name, "user": "user"}}],
            "current-context": node.name,
        },
        indent=1,
    )


def render_tokens_csv(node: Node, tokens: dict[str, str]) -> str:
    """Return the API server's static token file, with one line for each of USERS."""
    lines = []
    for name, (user, group) in USERS.items():
        user_name = user.format(node=node.name)
        lines.append(f'{tokens[name]},{user_name},{user_name},"{group}"')
    return "\n".join(lines) + "\n"


def build_subject_alt_names(node: Node) -> str:
    """Return the names and addresses in the API server's certificate, in the syntax of openssl."""
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    ip_addresses = ["127.0.0.1", node.addresses.node, KUBERNETES_SERVICE]
    return ",".join([*(f"DNS:{name}" for name in names), *(f"IP:{ip_address}" for ip_address in ip_addresses)])
