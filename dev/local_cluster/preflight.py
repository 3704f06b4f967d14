"""What has to hold before anything is started; each refusal is one line that says what to do."""

import os
import platform
import shutil
import sys

from local_cluster import debian, golden, paths, tools
from local_cluster.errors import Problem

COLD_GIB = 25
WARM_GIB = 5


def check() -> None:
    """Root, a Linux that this was made for, room on the disk, and the packages."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Problem("a local cluster needs Linux on x86-64: run this in a virtual machine, or use your own cluster")
    if os.geteuid() != 0:
        raise Problem("a local cluster needs root (it starts containers): run this again with sudo")
    _check_disk()
    debian.install(debian.missing_packages())


def _check_disk() -> None:
    folder = paths.cache()
    folder.mkdir(parents=True, exist_ok=True)
    warm = golden.exists() and all(module.folder.exists() for module in tools.MODULES)
    needed = WARM_GIB if warm else COLD_GIB
    free = shutil.disk_usage(folder).free >> 30
    if free < needed:
        raise Problem(f"{folder} has {free} GiB free and needs {needed}: make room, or set XDG_CACHE_HOME elsewhere")
