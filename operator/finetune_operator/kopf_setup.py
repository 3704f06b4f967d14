"""How kopf is set up: everything of it that would wait for ever, write, or need more rights is off or bounded."""

from __future__ import annotations

import secrets

import kopf

from finetune_operator.api import GROUP, PLURAL, VERSION
from finetune_operator.resources import JOB_LABEL

FINETUNEJOBS = (GROUP, VERSION, PLURAL)
JOBS = ("batch", "v1", "jobs")
PODS = ("", "v1", "pods")

_SILENCE = 70.0
"""Seconds without an event or a bookmark, which the API server sends each minute, after which a watch is begun anew."""


def log_in(settings: kopf.OperatorSettings, **_: object) -> kopf.ConnectionInfo:
    """By the service account in a pod, else by the kubeconfig."""
    found = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
    if found is None:
        raise kopf.PermanentError("neither a service account nor a kubeconfig is here: set KUBECONFIG")
    return found


def configure(settings: kopf.OperatorSettings, request_timeout: float, **_: object) -> None:
    """Set kopf's own settings."""
    # Without timeouts a watch can hang in silence: https://github.com/nolar/kopf/issues/698
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.inactivity_timeout = _SILENCE
    settings.watching.connect_timeout = 30
    settings.networking.request_timeout = request_timeout
    settings.networking.connect_timeout = 10
    settings.watching.chunk_size = 500
    settings.watching.label_selectors[JOBS] = JOB_LABEL
    settings.watching.label_selectors[PODS] = JOB_LABEL
    settings.posting.enabled = False
    settings.peering.standalone = True  # a peer of equal priority pauses: https://github.com/nolar/kopf/issues/734
    settings.scanning.disabled = True  # it would list CRDs and namespaces
    settings.persistence.diffbase_storage = _NoDiffBase()
    # kopf removes its finalizer from objects, so whoever knows the name makes it write: nolar/kopf#664
    settings.persistence.finalizer = f"{GROUP}/{secrets.token_hex(8)}"
    settings.queueing.idle_timeout = 0.1  # handlers are instant; each waiting worker keeps a whole body


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf reads its last-handled state for handlers that never use it: an annotation that any tenant may forge, so
    that a malformed one stops an object's events, and a deep copy of each body, half of the CPU time."""

    def build(self, **_: object) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: object) -> None:
        return None

    def store(self, **_: object) -> None:
        pass
