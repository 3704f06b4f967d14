"""Kubernetes objects as the operator reads and writes them."""

from __future__ import annotations

from typing import Any

Body = dict[str, Any]
"""An object or a part of it, as decoded from JSON."""
