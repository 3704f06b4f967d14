"""Building images with buildah, in a separate store in the cache folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_cluster import paths, shell


def get_storage_path() -> Path:
    return paths.get_cache_folder() / "buildah" / "storage"


def _build_buildah_command() -> list[str]:
    run_folder = paths.get_cache_folder() / "buildah" / "run"
    return ["buildah", "--root", str(get_storage_path()), "--runroot", str(run_folder), "--storage-driver", "overlay"]


def _build_environment() -> dict[str, str]:
    """Return variables that keep temporary files and cache mounts of builds on the disk of the cache folder."""
    temporary = paths.get_cache_folder() / "buildah" / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return {"TMPDIR": str(temporary), "BUILDAH_ISOLATION": "chroot"}


def share_uv_cache(uv_cache: Path) -> None:
    """Use the host's uv cache as the cache mount `uv` of builds, so that torch is downloaded only once."""
    mounts = paths.get_cache_folder() / "buildah" / "tmp" / "buildah-cache"
    mounts.mkdir(parents=True, exist_ok=True)
    uv_cache.mkdir(parents=True, exist_ok=True)
    link = mounts / "uv"
    link.unlink(missing_ok=True)
    link.symlink_to(uv_cache)


def exists(reference: str) -> bool:
    return shell.succeeds([*_build_buildah_command(), "inspect", "--type", "image", reference])


@dataclass(frozen=True)
class Source:
    """What an image is built from: a Dockerfile of this repository, one of its stages, and build arguments."""

    dockerfile: Path
    target: str
    """Name of the stage; empty for the last one."""
    build_arguments: tuple[str, ...]
    """Build arguments, as NAME=value."""


def build(source: Source, reference: str, log: Path) -> None:
    """Build an image."""
    options = ["--layers", "--pull=false", "--isolation=chroot", "--network=host"]
    options += [f"--build-arg={argument}" for argument in source.build_arguments]
    options += [f"--target={source.target}"] if source.target else []
    command = [*_build_buildah_command(), "build", *options, f"--file={source.dockerfile}", f"--tag={reference}"]
    shell.run([*command, paths.REPOSITORY], log, env=_build_environment())


def build_from_folder(
    folder: Path, reference: str, log: Path, environment: Mapping[str, str], entrypoint: str | None = None
) -> None:
    """Create an image with one layer that contains the files of `folder`."""
    buildah, build_environment = _build_buildah_command(), _build_environment()
    container = shell.capture_output([*buildah, "from", "scratch"], env=build_environment).strip()
    shell.run([*buildah, "add", "--quiet", container, folder, "/"], log, env=build_environment)
    config_arguments = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
    if entrypoint:
        config_arguments += ["--entrypoint", entrypoint]
    shell.run([*buildah, "config", *config_arguments, container], log, env=build_environment)
    shell.run([*buildah, "commit", "--quiet", "--rm", container, reference], log, env=build_environment)


def run(reference: str, argv: Sequence[str], volumes: Mapping[Path, str], log: Path) -> None:
    """Run a command as root in a temporary container of an image, with folders of the host mounted at `volumes`."""
    buildah, build_environment = _build_buildah_command(), _build_environment()
    volume_arguments = [f"--volume={source}:{target}" for source, target in volumes.items()]
    container = shell.capture_output([*buildah, "from", "--pull-never", reference], env=build_environment).strip()
    try:
        command = [*buildah, "run", "--user=0", *volume_arguments, container, "--", *argv]
        shell.run(command, log, env=build_environment)
    finally:
        shell.succeeds([*buildah, "rm", container])


def unmount_storage() -> None:
    """Remove the mounts of the store that a killed or failed build leaves: hard links cannot cross a mount."""
    shell.succeeds(["umount", "--recursive", get_storage_path() / "overlay"])  # fails if nothing is mounted


def inspect(reference: str) -> dict[str, Any]:
    """Return buildah's description of an image: its manifest, its config and its id."""
    return dict(json.loads(shell.capture_output([*_build_buildah_command(), "inspect", "--type", "image", reference])))


def remove(reference: str) -> None:
    shell.succeeds([*_build_buildah_command(), "rmi", "--force", reference])


def list_references() -> list[str]:
    """Return the names of all tagged images in the store."""
    listing = shell.capture_output(
        [*_build_buildah_command(), "images", "--format", "{{.Name}}:{{.Tag}}", "--noheading"]
    )
    return [line for line in listing.splitlines() if not line.startswith("<none>")]
