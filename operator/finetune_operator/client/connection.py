"""Connects to the API server with a kubeconfig or a pod's service account, through the official client."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kubernetes.client import ApiClient, Configuration
from kubernetes.config import ConfigException, kube_config, load_incluster_config
from yaml import YAMLError

from finetune_operator.client.errors import ClusterUnavailable

_SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT_NAMESPACE = "default"


class Connection(NamedTuple):
    """A client of an API server, and the namespace that the kubeconfig's context names."""

    api_client: ApiClient
    namespace: str
    context: str | None
    """Name of the context, or None in a pod."""


def connect(context: str | None = None, kubeconfig: Path | None = None) -> Connection:
    """Read the kubeconfig and return a connection. No request is made yet. Raises `ClusterUnavailable`."""
    configuration = Configuration()
    try:
        return _connect_by_kubeconfig(configuration, context, kubeconfig)
    except (ConfigException, OSError, ValueError, TypeError, YAMLError) as error:
        connection = None if context or kubeconfig else _connect_in_pod(configuration)
        if connection:
            return connection
        reason = str(error).partition("{")[0]  # the package names a place in a file by its content, with secrets
        message = f"cannot read the kubeconfig: {reason}; set KUBECONFIG or --kubeconfig and --context"
        raise ClusterUnavailable(message) from None


def _connect_by_kubeconfig(configuration: Configuration, context: str | None, kubeconfig: Path | None) -> Connection:
    path = str(kubeconfig) if kubeconfig else None
    contexts, active_context = kube_config.list_kube_config_contexts(config_file=path)
    chosen = next((each for each in contexts if each["name"] == context), None) if context else active_context
    if chosen is None:
        names = ", ".join(each["name"] for each in contexts)
        raise ClusterUnavailable(f"the kubeconfig has no context {context!r}; it has {names}")
    kube_config.load_kube_config(
        config_file=path, context=chosen["name"], client_configuration=configuration, persist_config=False
    )
    namespace = chosen["context"].get("namespace") or _DEFAULT_NAMESPACE
    return Connection(ApiClient(configuration), namespace, chosen["name"])


def _connect_in_pod(configuration: Configuration) -> Connection | None:
    try:
        load_incluster_config(client_configuration=configuration)
        namespace = _SERVICE_ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip()
    except (ConfigException, OSError):
        return None
    return Connection(ApiClient(configuration), namespace, None)
