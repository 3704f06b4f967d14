"""Checks of the host before anything is built or started."""

import os
import platform
import shutil
import sys

from local_cluster import debian, golden, paths
from local_cluster.errors import UserError
from local_cluster.parts import Parts

CACHED_GIB = 5


def check_host(parts: Parts) -> None:
    """Check system, user and disk space, and install missing packages. Raises UserError with what to do."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise UserError(
            "a local cluster needs Linux on x86-64: run the command in a virtual machine, or use a cluster of your own"
        )
    if os.geteuid() != 0:
        raise UserError("a local cluster needs root to start containers: run the command with sudo")
    _check_disk(parts)
    debian.install_packages(debian.find_missing_packages())


def _check_disk(parts: Parts) -> None:
    folder = paths.get_cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    is_cached = golden.has_images(parts.images) and all(module.folder.exists() for module in parts.modules)
    needed_gib = CACHED_GIB if is_cached else parts.build_gib
    free_gib = shutil.disk_usage(folder).free >> 30
    if free_gib < needed_gib:
        raise UserError(
            f"{folder} needs {needed_gib} GiB of free disk space and has {free_gib}: "
            "free some space, or set XDG_CACHE_HOME to a folder on another disk"
        )
