"""The images that a cluster runs: what goes into each, and whether it has to be built anew."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from local_cluster import buildah, cache, debian, paths, shell
from local_cluster.console import echo, log_step
from local_cluster.containerd import PAUSE_IMAGE


@dataclass(frozen=True)
class Image:
    """`reference` is what a pod's manifest says; containerd knows it under Docker's full name."""

    reference: str
    dockerfile: str

    @property
    def full_name(self) -> str:
        return f"docker.io/library/{self.reference}"

    @functools.cached_property
    def built_reference(self) -> str:
        """Its name in buildah's store holds the hash of all that a build reads; taken once, for sources may change."""
        return f"localhost/{self.name}:{cache.hash_files(_list_sources(self.dockerfile), get_base_reference())}"

    @property
    def name(self) -> str:
        return self.reference.partition(":")[0]


OPERATOR = Image("finetune-operator:dev", "Dockerfile.operator")
TRAINER = Image("finetune-trainer:dev", "Dockerfile.trainer")
IMAGES = (OPERATOR, TRAINER)


def _list_sources(dockerfile: str) -> Iterator[Path]:
    for name in (dockerfile, ".dockerignore", "pyproject.toml", "uv.lock", "README.md", "LICENSE"):
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


def list_built_references() -> dict[str, str]:
    """Every image a cluster has: its name there, and its name in buildah's store."""
    return {PAUSE_IMAGE: get_pause_reference(), **{image.full_name: image.built_reference for image in IMAGES}}


def build_all() -> None:
    """Build what is missing, and drop what it replaces."""
    _build_base()
    for image in IMAGES:
        _build_image(image)
    _remove_old_images()


def _build_base() -> None:
    if buildah.exists(get_base_reference()) and buildah.exists(get_pause_reference()):
        return
    log = _create_log("base")
    folder = paths.get_cache_folder() / "buildah" / "debian"
    echo("building the base image (once)")
    with log_step("base image built", log), cache.replace_folder(folder) as root:
        debian.bootstrap_root(root)
        buildah.build_from_folder(root, get_base_reference(), log, debian.BASE_ENVIRONMENT)
        with cache.replace_folder(folder.with_name("pause")) as pause:
            _create_pause_root(root, pause)
            entrypoint = '["/bin/sleep", "2147483647"]'
            buildah.build_from_folder(pause, get_pause_reference(), log, {"PATH": "/bin"}, entrypoint)
    cache.remove_folder(folder)
    cache.remove_folder(folder.with_name("pause"))


def _create_pause_root(root: Path, target: Path) -> None:
    """busybox under the names of its commands: it holds a pod's namespaces, and serves tests as a small image."""
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
    log = _create_log(image.dockerfile)
    echo(f"building {image.reference}")
    with log_step(f"{image.reference} built", log):
        buildah.build(paths.REPOSITORY / image.dockerfile, image.built_reference, get_base_reference(), log)


def _create_log(name: str) -> Path:
    log = paths.get_logs_folder() / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


def _remove_old_images() -> None:
    """buildah removes with an image what only it needed, and keeps what the next build can use again."""
    current_references = {get_base_reference(), *list_built_references().values()}
    for reference in buildah.list_references():
        if reference not in current_references:
            buildah.remove(reference)
