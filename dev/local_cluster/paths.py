"""Folders: the checkout, the cache, and the files of each cluster."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
GO_MODULES = REPOSITORY / "dev" / "tools"


def get_cache_folder() -> Path:
    """Return the folder of tools, images and clusters, which all checkouts of a user share."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "finetune-operator"


def get_logs_folder() -> Path:
    return get_cache_folder() / "logs"


def get_demo_folder() -> Path:
    """Return the folder of the demo's report and of its Python environment."""
    return get_cache_folder() / "demo"


def get_cluster_folder(name: str) -> Path:
    return get_cache_folder() / "clusters" / name
