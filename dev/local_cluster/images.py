"""The images that a cluster runs: what goes into each, and whether it has to be built anew."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from local_cluster import buildah, cache, debian, paths, shell
from local_cluster.console import say, step
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
    def built(self) -> str:
        """Its name in buildah's store holds the hash of all that a build reads; taken once, for sources may change."""
        return f"localhost/{self.name}:{cache.digest(_sources(self.dockerfile), base_reference())}"

    @property
    def name(self) -> str:
        return self.reference.partition(":")[0]


OPERATOR = Image("finetune-operator:dev", "Dockerfile.operator")
TRAINER = Image("finetune-trainer:dev", "Dockerfile.trainer")
IMAGES = (OPERATOR, TRAINER)


def _sources(dockerfile: str) -> Iterator[Path]:
    for name in (dockerfile, ".dockerignore", "pyproject.toml", "uv.lock", "README.md", "LICENSE"):
        yield paths.REPOSITORY / name
    for folder in ("operator", "trainer"):
        for file in (paths.REPOSITORY / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and ".egg-info" not in str(file):
                yield file


def base_reference() -> str:
    made_from = cache.digest([], debian.SUITE, debian.BASE_PACKAGES, *debian.BASE_ENVIRONMENT)
    return f"localhost/finetune-base:{made_from}"


def pause_reference() -> str:
    return base_reference().replace("-base:", "-pause:")


def built_references() -> dict[str, str]:
    """Every image a cluster has: its name there, and its name in buildah's store."""
    return {PAUSE_IMAGE: pause_reference(), **{image.full_name: image.built for image in IMAGES}}


def build_all() -> None:
    """Build what is missing, and drop what it replaces."""
    _build_base()
    for image in IMAGES:
        _build(image)
    _drop_old()


def _build_base() -> None:
    if buildah.exists(base_reference()) and buildah.exists(pause_reference()):
        return
    log = _log("base")
    folder = paths.cache() / "buildah" / "debian"
    say("building the base image (once)")
    with step("base image built", log), cache.fresh_folder(folder) as root:
        debian.make_root(root)
        buildah.from_folder(root, base_reference(), log, debian.BASE_ENVIRONMENT)
        with cache.fresh_folder(folder.with_name("pause")) as pause:
            _fill_pause(root, pause)
            entrypoint = '["/bin/sleep", "2147483647"]'
            buildah.from_folder(pause, pause_reference(), log, {"PATH": "/bin"}, entrypoint)
    cache.remove(folder)
    cache.remove(folder.with_name("pause"))


def _fill_pause(root: Path, target: Path) -> None:
    """busybox under the names of its commands: it holds a pod's namespaces, and serves tests as a small image."""
    (target / "bin").mkdir()
    busybox = target / "bin" / "busybox"
    busybox.write_bytes((root / "bin" / "busybox").read_bytes())
    busybox.chmod(0o755)
    for command in shell.output([busybox, "--list"]).split():
        if command != "busybox":
            (target / "bin" / command).symlink_to("busybox")


def _build(image: Image) -> None:
    if buildah.exists(image.built):
        return
    uv_cache = Path(shell.output(["uv", "cache", "dir"]).strip())
    buildah.share_uv_cache(uv_cache)
    log = _log(image.dockerfile)
    say(f"building {image.reference}")
    with step(f"{image.reference} built", log):
        buildah.build(paths.REPOSITORY / image.dockerfile, image.built, base_reference(), log)


def _log(name: str) -> Path:
    log = paths.logs() / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


def _drop_old() -> None:
    """buildah removes with an image what only it needed, and keeps what the next build can use again."""
    wanted = {base_reference(), *built_references().values()}
    for reference in buildah.references():
        if reference not in wanted:
            buildah.remove(reference)
