"""Address and credentials of the API server, from the pod's service account or a kubeconfig.

The `kubernetes` package reads both, so exec plug-ins, token files, certificates and proxies work as in its other users.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from yaml import YAMLError

from finetune_operator.kube.proxy import find_proxy

_BEARER_TOKEN = "BearerToken"
"""The package's name of the only way to authenticate that it knows."""


class LoginError(Exception):
    """There are no usable credentials of the API server. The message says what to do."""


async def load_configuration() -> Configuration:
    """Return address and credentials of the API server: files are read, and an exec plug-in is called.

    The result reads the token of a service account again each minute. All other credentials stay as they are. Raises
    `LoginError`.
    """
    # The proxy is determined here; see `find_proxy`. The package's read buffer is 2 MiB.
    configuration = Configuration(client_session_kwargs={"trust_env": False, "read_bufsize": 2**16})
    try:
        await _load_credentials(configuration)
    except (ConfigException, OSError, ValueError, TypeError, YAMLError) as error:  # TypeError: a part is missing
        reason = str(error).partition("{")[0]  # the package names a place in a file by its content, with secrets
        raise LoginError(f"cannot log in to the API server: {type(error).__name__}: {reason}") from None
    configuration.proxy = configuration.proxy or find_proxy(configuration.host)
    _check_configuration(configuration)
    return configuration


async def _load_credentials(configuration: Configuration) -> None:
    try:
        load_incluster_config(client_configuration=configuration)
    except ConfigException as error:
        paths = os.environ.get("KUBECONFIG") or "~/.kube/config"
        if not any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep)):
            raise LoginError(
                f"found neither a service account ({error}) nor a kubeconfig at {paths}; set KUBECONFIG"
            ) from error
        await load_kube_config(config_file=paths, client_configuration=configuration, persist_config=False)


def _check_configuration(configuration: Configuration) -> None:
    """Raise `LoginError` for what would fail later and say less."""
    has_credentials = configuration.api_key or configuration.cert_file
    if configuration.host.startswith("https:") and not has_credentials:  # the package only logs a plug-in's error
        raise LoginError(
            f"the kubeconfig has no credentials for {configuration.host}: its user has no token and no certificate, or "
            "its exec plug-in failed; see the log lines before this one"
        )
    if configuration.tls_server_name:  # kopf, which watches, verifies the name of the URL
        raise LoginError("tls-server-name is not supported: use a server name that the certificate contains")
    if configuration.proxy and urlsplit(configuration.proxy).scheme not in ("http", "https"):
        raise LoginError("only HTTP proxies are supported: set HTTPS_PROXY or proxy-url to http://HOST:PORT")


async def get_authorization(configuration: Configuration) -> str | None:
    """Return the value of the header `Authorization`, or None. Raises `LoginError`."""
    try:
        authorization = await configuration.get_api_key_with_prefix(_BEARER_TOKEN)
    except (ConfigException, OSError) as error:
        raise LoginError(f"cannot read the token of the service account: {error}") from error
    return authorization.strip() if authorization else None  # token files may end with a newline
