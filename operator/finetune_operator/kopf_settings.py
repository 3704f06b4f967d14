"""Configuration of kopf.

Everything in kopf that could wait forever, write to objects or need more permissions is disabled or limited.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from asyncio import sslproto
from collections.abc import Iterator, Mapping, Set
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
from kopf._cogs.structs.references import Insights, NamespaceName

from finetune_operator.api import GROUP
from finetune_operator.kube.login import LoginError, get_authorization, load_configuration

_WATCH_INACTIVITY_SECONDS = 70.0
"""Seconds without an event or bookmark until a watch is restarted. The API server sends a bookmark every minute."""
_TLS_BUFFER_BYTES = 32 * 1024
"""Size of the buffer of each TLS connection: two records."""
_MIN_LOGIN_INTERVAL = 10.0
"""Minimum number of seconds between two logins, which may call an exec plug-in."""
_EXPIRATION = timedelta(days=3650)


class WatchLogin:
    """The login of the watches. Rejected credentials may be valid again: an API server without etcd answers 401."""

    def __init__(self) -> None:
        self._next_login = 0.0
        """Monotonic time of the earliest next login. kopf does not pause while credentials are rejected."""

    async def log_in(self, **_: object) -> kopf.ConnectionInfo:
        """Return address and credentials for watches. kopf calls this again if they are rejected."""
        await asyncio.sleep(self._next_login - time.monotonic())
        self._next_login = time.monotonic() + _MIN_LOGIN_INTERVAL
        try:
            configuration = await load_configuration()
            authorization = await get_authorization(configuration)
        except LoginError as error:
            raise kopf.TemporaryError(str(error), delay=5) from error
        scheme, token = (authorization or " ").split(" ", 1)
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            scheme=scheme or None,
            token=token or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            proxy_url=configuration.proxy,
            # kopf ends the process if a login returns what was rejected before. This makes each login another one.
            expiration=datetime.now(UTC) + _EXPIRATION,
        )


def limit_tls_buffers() -> None:
    """Limit the memory of idle connections. asyncio allocates 256 KiB for each, and every watch has its own.

    See https://github.com/python/cpython/issues/109534.
    """
    sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES


def configure_kopf(
    settings: kopf.OperatorSettings,
    request_timeout: float,
    label_selectors: Mapping[tuple[str, str, str], str],
    **_: object,
) -> None:
    """Set kopf's settings. `label_selectors` are by group, version and plural of the watched resources."""
    # Without timeouts a watch can hang in silence: https://github.com/nolar/kopf/issues/698
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.inactivity_timeout = _WATCH_INACTIVITY_SECONDS
    settings.watching.connect_timeout = 30
    settings.networking.request_timeout = request_timeout
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = _EndlessBackoffs()
    settings.watching.chunk_size = 500
    for resource, selector in label_selectors.items():
        settings.watching.label_selectors[resource] = selector
    settings.posting.enabled = False
    settings.peering.standalone = True  # a peer of equal priority pauses: https://github.com/nolar/kopf/issues/734
    settings.scanning.disabled = True  # it would list CRDs and namespaces
    settings.persistence.diffbase_storage = _NoDiffBase()
    # kopf removes its finalizer from objects, so any user who knows its name could make kopf write:
    # https://github.com/nolar/kopf/issues/664
    settings.persistence.finalizer = f"{GROUP}/{secrets.token_hex(8)}"
    settings.queueing.idle_timeout = 0.1  # handlers are fast, and each idle worker holds an object in memory


_INITIAL_BACKOFFS = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0)
_MAX_BACKOFF = 30.0


class _EndlessBackoffs:
    """Seconds between retries, without an end.

    With a finite list, kopf ends the process if one namespace refuses a watch for that long. Infinite iterables are
    supported: https://docs.kopf.dev/en/stable/configuration/.
    """

    def __iter__(self) -> Iterator[float]:
        yield from _INITIAL_BACKOFFS
        while True:
            yield _MAX_BACKOFF


class WatchedNamespaces:
    """The namespaces that kopf watches, or the whole cluster.

    kopf notices new and deleted namespaces only by watching all namespaces, whatever their labels are, for which the
    operator may have no permission. So kopf gets a pattern, which by itself watches nothing, and the names of the
    namespaces through its `insights`.
    """

    def __init__(self, is_clusterwide: bool) -> None:
        self._is_clusterwide = is_clusterwide
        self._insights = Insights()

    def build_kopf_arguments(self) -> dict[str, Any]:
        """Return the arguments of `kopf.run` that select the namespaces."""
        if self._is_clusterwide:
            return {"clusterwide": True}
        return {"namespaces": ["*"], "insights": self._insights}

    async def replace_names(self, names: Set[str]) -> None:
        """Watch exactly these namespaces from now on."""
        if self._is_clusterwide or self._insights.namespaces == names:
            return
        async with self._insights.revised:
            self._insights.namespaces.clear()
            self._insights.namespaces.update(map(NamespaceName, names))
            self._insights.revised.notify_all()


class _NoDiffBase(kopf.DiffBaseStorage):
    """Disables kopf's last-handled state, which low-level handlers do not use.

    kopf reads it from an annotation that tenants can write, and a malformed one would stop the events of an object. It
    also makes a deep copy of each object, which takes half of the CPU time.
    """

    def build(self, **_: object) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: object) -> None:
        return None

    def store(self, **_: object) -> None:
        pass
