"""Connects to the API server with a kubeconfig or a pod's service account, through the official client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from urllib3 import Retry
from yaml import YAMLError

from finetune_operator.client.errors import ClusterUnavailable, LoginRequired
from finetune_trainer.text import to_one_line

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration

_SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT_NAMESPACE = "default"
_RETRIES = Retry(connect=0, read=1, redirect=2, status=0, other=0)
"""urllib3's default of three retries makes an unreachable API server slow to notice. `Client.wait` retries itself."""


class Connection(NamedTuple):
    """A client of an API server, and the namespace that the kubeconfig's context names."""

    api_client: ApiClient
    namespace: str
    context: str | None
    """Name of the context, or None in a pod."""


def connect(context: str | None = None, kubeconfig: Path | None = None) -> Connection:
    """Read the kubeconfig and return a connection. No request is made yet. Raises `ClusterUnavailable`."""
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException

    configuration = Configuration(retries=_RETRIES)
    try:
        return _connect_by_kubeconfig(configuration, context, kubeconfig)
    except (ConfigException, OSError, ValueError, TypeError, KeyError, YAMLError) as error:
        connection = None if context or kubeconfig else _connect_in_pod(configuration)
        if connection:
            return connection
        # The package names a place in a file by its content, with secrets.
        reason = to_one_line(str(error).partition("{")[0], 300)
        message = f"cannot read the kubeconfig: {reason}; set KUBECONFIG or --kubeconfig and --context"
        raise ClusterUnavailable(message) from None


def _connect_by_kubeconfig(configuration: Configuration, context: str | None, kubeconfig: Path | None) -> Connection:
    from kubernetes.client import ApiClient
    from kubernetes.config import kube_config

    path = str(kubeconfig) if kubeconfig else None
    contexts, active_context = kube_config.list_kube_config_contexts(config_file=path)
    chosen = next((each for each in contexts if each["name"] == context), None) if context else active_context
    if chosen is None:
        names = to_one_line(", ".join(str(each["name"]) for each in contexts))
        raise ClusterUnavailable(f"the kubeconfig has no context {context!r}; it has {names}")
    kube_config.load_kube_config(
        config_file=path, context=chosen["name"], client_configuration=configuration, persist_config=False
    )
    _check_credentials(configuration, chosen)
    namespace = chosen["context"].get("namespace") or _DEFAULT_NAMESPACE
    return Connection(ApiClient(configuration), namespace, chosen["name"])


def _check_credentials(configuration: Configuration, context: dict[str, Any]) -> None:
    """Raise `LoginRequired` without credentials: the package only logs the error of a credential plug-in."""
    has_credentials = configuration.api_key or configuration.cert_file or configuration.username
    if configuration.host.startswith("https:") and not has_credentials:
        user, name = to_one_line(str(context["context"].get("user"))), to_one_line(str(context["name"]))
        raise LoginRequired(
            f"the kubeconfig provides no credentials for user {user} of context {name}; log in, and check that its "
            "credential plug-in (exec) works"
        )


def _connect_in_pod(configuration: Configuration) -> Connection | None:
    from kubernetes.client import ApiClient
    from kubernetes.config import ConfigException, load_incluster_config

    try:
        load_incluster_config(client_configuration=configuration)
        namespace = _SERVICE_ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip()
    except (ConfigException, OSError):
        return None
    return Connection(ApiClient(configuration), namespace, None)
