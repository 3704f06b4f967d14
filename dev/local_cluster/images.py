"""The images of a cluster: their sources, their names, and how they are built."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from local_cluster import buildah, cache, debian, paths, shell
from local_cluster.console import log_step
from local_cluster.containerd import PAUSE_IMAGE


@dataclass(frozen=True)
class Image:
    """An image that is built from a Dockerfile; `reference` is its name in the manifests of pods."""

    reference: str
    dockerfile: str
    target: str = ""
    """Stage of the Dockerfile; empty for the last one."""
    build_arguments: tuple[str, ...] = ()
    """Arguments of the Dockerfile, as NAME=value."""

    @property
    def full_name(self) -> str:
        """Return the name in containerd, with registry and namespace."""
        return f"docker.io/library/{self.reference}"

    @functools.cached_property
    def built_reference(self) -> str:
        """Return the name in buildah's store, with a hash of all sources. It is cached, because sources may change."""
        sources_digest = cache.hash_files(_list_sources(self.dockerfile), get_base_reference(), *self.build_arguments)
        return f"localhost/{self.name}:{sources_digest}"

    @property
    def name(self) -> str:
        return self.reference.partition(":")[0]


OPERATOR = Image("finetune-operator:dev", "Dockerfile.operator")
TRAINER = Image("finetune-trainer:dev", "Dockerfile.trainer")
TASK = Image("finetune-task:dev", "Dockerfile.trainer", target="task")
IMAGES = (OPERATOR, TRAINER, TASK)
# The demo trains on the CPU: its image has neither CUDA nor Unsloth, which are more than half of the other one.
CPU_TRAINER = Image(
    "finetune-trainer-cpu:dev",
    "Dockerfile.trainer",
    build_arguments=("ACCELERATOR=cpu", "UV_NO_CACHE=1", "UV_LINK_MODE=hardlink"),
)
DEMO_IMAGES = (OPERATOR, CPU_TRAINER, TASK)


def _list_sources(dockerfile: str) -> Iterator[Path]:
    files = (
        "pyproject.toml",
        "uv.lock",
        "README.md",
        "LICENSE",
        "dev/local_cluster/cuda_stubs.py",
        "dev/local_cluster/llama_cpp.py",
    )
    for name in (dockerfile, ".dockerignore", *files):
        yield paths.REPOSITORY / name
    for folder in ("operator", "trainer"):
        for file in (paths.REPOSITORY / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and ".egg-info" not in str(file):
                yield file


def get_base_reference() -> str:
    base_digest = cache.hash_files([], debian.SUITE, debian.BASE_PACKAGES, *debian.BASE_ENVIRONMENT)
    return f"localhost/finetune-base:{base_digest}"


def get_pause_reference() -> str:
    return get_base_reference().replace("-base:", "-pause:")


def list_built_references(selected: Iterable[Image]) -> dict[str, str]:
    """Return the pause image and the selected ones: the name in containerd, and the reference in buildah's store."""
    return {PAUSE_IMAGE: get_pause_reference(), **{image.full_name: image.built_reference for image in selected}}


def build_missing(selected: Iterable[Image]) -> None:
    """Build those of the selected images that are missing, and remove images that were built from other sources."""
    _build_base()
    for image in selected:
        _build_image(image)
    _remove_old_images()


def _build_base() -> None:
    if buildah.exists(get_base_reference()) and buildah.exists(get_pause_reference()):
        return
    log = _create_log("base")
    folder = paths.get_cache_folder() / "buildah" / "debian"
    with log_step("building the base image", log), cache.replace_folder(folder) as root:
        debian.bootstrap_root(root)
        buildah.build_from_folder(root, get_base_reference(), log, debian.BASE_ENVIRONMENT)
        with cache.replace_folder(folder.with_name("pause")) as pause:
            _create_pause_root(root, pause)
            entrypoint = '["/bin/sleep", "2147483647"]'
            buildah.build_from_folder(pause, get_pause_reference(), log, {"PATH": "/bin"}, entrypoint)
    cache.remove_folder(folder)
    cache.remove_folder(folder.with_name("pause"))


def _create_pause_root(root: Path, target: Path) -> None:
    """Create a root file system with busybox and a link for each of its commands."""
    (target / "bin").mkdir()
    busybox = target / "bin" / "busybox"
    busybox.write_bytes((root / "bin" / "busybox").read_bytes())
    busybox.chmod(0o755)
    for command in shell.capture_output([busybox, "--list"]).split():
        if command != "busybox":
            (target / "bin" / command).symlink_to("busybox")


def _build_image(image: Image) -> None:
    if buildah.exists(image.built_reference):
        return
    uv_cache = Path(shell.capture_output(["uv", "cache", "dir"]).strip())
    buildah.share_uv_cache(uv_cache)
    log = _create_log(f"{image.dockerfile}.{image.name}")
    with log_step(f"building the image {image.reference}", log):
        build_arguments = (f"BASE_IMAGE={get_base_reference()}", *image.build_arguments)
        source = buildah.Source(paths.REPOSITORY / image.dockerfile, image.target, build_arguments)
        buildah.build(source, image.built_reference, log)


def _create_log(name: str) -> Path:
    log = paths.get_logs_folder() / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


def _remove_old_images() -> None:
    """Remove images of earlier sources. buildah keeps the layers that current images share with them."""
    current_references = {get_base_reference(), *list_built_references((*IMAGES, *DEMO_IMAGES)).values()}
    for reference in buildah.list_references():
        if reference not in current_references:
            buildah.remove(reference)
