"""The images and programs that a command needs, and the disk space to build them."""

from dataclasses import dataclass

from local_cluster import images, tools
from local_cluster.images import Image
from local_cluster.tools import GoModule


@dataclass(frozen=True)
class Parts:
    """What a cluster consists of, and the free disk space in GiB that building all of it needs."""

    images: tuple[Image, ...]
    modules: tuple[GoModule, ...]
    build_gib: int


ALL = Parts(images.IMAGES, tools.MODULES, build_gib=25)
DEMO = Parts(images.DEMO_IMAGES, tools.CLUSTER_MODULES, build_gib=14)
