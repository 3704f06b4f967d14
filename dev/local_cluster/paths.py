"""Where things lie: the checkout, the cache that outlives it, and what belongs to one cluster."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
GO_MODULES = REPOSITORY / "dev" / "tools"


def cache() -> Path:
    """Everything that is costly to make and the same for every checkout."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "finetune-operator"


def logs() -> Path:
    return cache() / "logs"


def cluster_folder(name: str) -> Path:
    return cache() / "clusters" / name
