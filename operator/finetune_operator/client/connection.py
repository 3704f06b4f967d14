"""Connects to the API server with a kubeconfig or a pod's service account, through the official client."""

from __future__ import annotations

import binascii
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from urllib3 import Retry
from urllib3.exceptions import HTTPError
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
        with _collect_log() as messages:
            chosen = _load_kubeconfig(configuration, context, kubeconfig)
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError, YAMLError) as error:
        connection = None if context or kubeconfig else _connect_in_pod(configuration)
        if connection:
            return connection
        message = f"cannot read the kubeconfig {_find_path(kubeconfig)}: {_describe_config_error(error)}"
        raise ClusterUnavailable(f"{message}; set KUBECONFIG or --kubeconfig and --context") from None
    _check_server(configuration, chosen)
    _check_credentials(configuration, chosen, messages)
    namespace = chosen["context"].get("namespace") or _DEFAULT_NAMESPACE
    return Connection(_create_client(configuration), namespace, chosen["name"])


def _find_path(kubeconfig: Path | None) -> str:
    return to_one_line(str(kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"))


def _describe_config_error(error: Exception) -> str:
    # The package names a place in a file by its content, with secrets.
    reason = to_one_line(str(error).partition("{")[0], 300)
    if isinstance(error, TypeError | KeyError | AttributeError):
        return "it is not a kubeconfig"
    if isinstance(error, binascii.Error):
        return f"a certificate, key or token in it is not base64 ({reason})"
    if "object with name in" in reason:
        return "it has no current-context"
    return "there is no such file, or it is empty" if "No configuration found" in reason else reason


@contextmanager
def _collect_log() -> Iterator[list[str]]:
    """Collect what the package logs, instead of raising it: why a credential plug-in has failed."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield messages
    finally:
        root.removeHandler(handler)


def _load_kubeconfig(configuration: Configuration, context: str | None, kubeconfig: Path | None) -> dict[str, Any]:
    """Fill the configuration, and return the context. Raises what the package raises, and `ClusterUnavailable`."""
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
    return dict(chosen)


def _create_client(configuration: Configuration) -> ApiClient:
    from kubernetes.client import ApiClient

    try:
        return ApiClient(configuration)
    except (ValueError, HTTPError) as error:
        proxy = f"the proxy {to_one_line(str(configuration.proxy))}" if configuration.proxy else "the configuration"
        message = f"{proxy} for the API server is invalid: {to_one_line(str(error), 300)}; correct it in the kubeconfig"
        raise ClusterUnavailable(f"{message}, or in HTTPS_PROXY") from None


def _check_server(configuration: Configuration, context: dict[str, Any]) -> None:
    if not str(configuration.host).startswith(("https://", "http://")):
        host, cluster = (to_one_line(str(each)) for each in (configuration.host, context["context"].get("cluster")))
        raise ClusterUnavailable(
            f"the server {host} of cluster {cluster} in the kubeconfig has no scheme: https://{host}"
        )


def _check_credentials(configuration: Configuration, context: dict[str, Any], messages: Sequence[str]) -> None:
    """Raise `LoginRequired` without usable credentials. The package only logs the error of a credential plug-in."""
    if any(not value.isprintable() for value in configuration.api_key.values()):
        raise LoginRequired("the token of the kubeconfig has a line break or another control character; log in again")
    has_credentials = configuration.api_key or configuration.cert_file or configuration.username
    if configuration.host.startswith("https:") and not has_credentials:
        details = f": {to_one_line(messages[-1], 300)}" if messages else ""
        user, name = to_one_line(str(context["context"].get("user"))), to_one_line(str(context["name"]))
        raise LoginRequired(
            f"the kubeconfig provides no credentials for user {user} of context {name}; log in, and check that its "
            f"credential plug-in (exec) works{details}"
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
