"""Images made by buildah, in a store of our own below the cache."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local_cluster import paths, shell


def get_storage_path() -> Path:
    return paths.get_cache_folder() / "buildah" / "storage"


def _build_buildah_command() -> list[str]:
    run_folder = paths.get_cache_folder() / "buildah" / "run"
    return ["buildah", "--root", str(get_storage_path()), "--runroot", str(run_folder), "--storage-driver", "overlay"]


def _build_environment() -> dict[str, str]:
    """Large temporary files stay on the cache's disk; so do the cache mounts of a build."""
    temporary = paths.get_cache_folder() / "buildah" / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return {"TMPDIR": str(temporary), "BUILDAH_ISOLATION": "chroot"}


def share_uv_cache(uv_cache: Path) -> None:
    """Make the builds' cache mount with the id `uv` this machine's uv cache: torch is fetched once, not twice."""
    mounts = paths.get_cache_folder() / "buildah" / "tmp" / "buildah-cache"
    mounts.mkdir(parents=True, exist_ok=True)
    uv_cache.mkdir(parents=True, exist_ok=True)
    link = mounts / "uv"
    link.unlink(missing_ok=True)
    link.symlink_to(uv_cache)


def exists(reference: str) -> bool:
    return shell.succeeds([*_build_buildah_command(), "inspect", "--type", "image", reference])


def build(dockerfile: Path, reference: str, base: str, log: Path) -> None:
    command = [
        *_build_buildah_command(),
        "build",
        "--layers",
        "--pull=false",
        "--isolation",
        "chroot",
        "--network",
        "host",
    ]
    command += ["--build-arg", f"BASE_IMAGE={base}", "--file", str(dockerfile), "--tag", reference]
    shell.run([*command, paths.REPOSITORY], log, env=_build_environment())


def build_from_folder(
    folder: Path, reference: str, log: Path, environment: Mapping[str, str], entrypoint: str | None = None
) -> None:
    """An image of one layer: what the folder holds."""
    container = shell.capture_output([*_build_buildah_command(), "from", "scratch"], env=_build_environment()).strip()
    shell.run([*_build_buildah_command(), "add", "--quiet", container, folder, "/"], log, env=_build_environment())
    config_arguments = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
    if entrypoint:
        config_arguments += ["--entrypoint", entrypoint]
    shell.run([*_build_buildah_command(), "config", *config_arguments, container], log, env=_build_environment())
    shell.run(
        [*_build_buildah_command(), "commit", "--quiet", "--rm", container, reference], log, env=_build_environment()
    )


def unmount_storage() -> None:
    """A build that was killed leaves the store mounted over itself, and no hard link leads out of a mount."""
    shell.succeeds(["umount", get_storage_path() / "overlay"])  # it fails where nothing is mounted


def inspect(reference: str) -> dict[str, Any]:
    return dict(json.loads(shell.capture_output([*_build_buildah_command(), "inspect", "--type", "image", reference])))


def remove(reference: str) -> None:
    shell.succeeds([*_build_buildah_command(), "rmi", "--force", reference])


def list_references() -> list[str]:
    listing = shell.capture_output(
        [*_build_buildah_command(), "images", "--format", "{{.Name}}:{{.Tag}}", "--noheading"]
    )
    return [line for line in listing.splitlines() if not line.startswith("<none>")]
