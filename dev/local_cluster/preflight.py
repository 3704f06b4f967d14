"""What has to hold before anything is started; each refusal is one line that says what to do."""

import os
import platform
import shutil
import sys

from local_cluster import debian, golden, paths, tools
from local_cluster.errors import UserError

UNCACHED_GIB = 25
CACHED_GIB = 5


def check_host() -> None:
    """Root, a Linux that this was made for, room on the disk, and the packages."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise UserError("a local cluster needs Linux on x86-64: run this in a virtual machine, or use your own cluster")
    if os.geteuid() != 0:
        raise UserError("a local cluster needs root (it starts containers): run this again with sudo")
    _check_disk()
    debian.install_packages(debian.find_missing_packages())


def _check_disk() -> None:
    folder = paths.get_cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    is_cached = golden.has_images() and all(module.folder.exists() for module in tools.MODULES)
    needed_gib = CACHED_GIB if is_cached else UNCACHED_GIB
    free_gib = shutil.disk_usage(folder).free >> 30
    if free_gib < needed_gib:
        raise UserError(
            f"{folder} has {free_gib} GiB free and needs {needed_gib}: make room, or set XDG_CACHE_HOME elsewhere"
        )
