"""Kubernetes objects as the operator reads and writes them."""

from __future__ import annotations

from typing import Any, NamedTuple

Body = dict[str, Any]
"""An object or a part of it, as decoded from JSON."""


class ObjectKey(NamedTuple):
    """Identifies an object of one of the operator's kinds in the work queue and in the caches."""

    kind: str
    namespace: str
    name: str
