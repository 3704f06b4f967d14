"""Images made by buildah, in a store of our own below the cache."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local_cluster import paths, shell


def storage() -> Path:
    return paths.cache() / "buildah" / "storage"


def _store() -> list[str]:
    run = paths.cache() / "buildah" / "run"
    return ["buildah", "--root", str(storage()), "--runroot", str(run), "--storage-driver", "overlay"]


def _environment() -> dict[str, str]:
    """Large temporary files stay on the cache's disk; so do the cache mounts of a build."""
    temporary = paths.cache() / "buildah" / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return {"TMPDIR": str(temporary), "BUILDAH_ISOLATION": "chroot"}


def share_uv_cache(uv_cache: Path) -> None:
    """Make the builds' cache mount with the id `uv` this machine's uv cache: torch is fetched once, not twice."""
    mounts = paths.cache() / "buildah" / "tmp" / "buildah-cache"
    mounts.mkdir(parents=True, exist_ok=True)
    uv_cache.mkdir(parents=True, exist_ok=True)
    link = mounts / "uv"
    link.unlink(missing_ok=True)
    link.symlink_to(uv_cache)


def exists(reference: str) -> bool:
    return shell.succeeds([*_store(), "inspect", "--type", "image", reference])


def build(dockerfile: Path, reference: str, base: str, log: Path) -> None:
    command = [*_store(), "build", "--layers", "--pull=false", "--isolation", "chroot", "--network", "host"]
    command += ["--build-arg", f"BASE_IMAGE={base}", "--file", str(dockerfile), "--tag", reference]
    shell.run([*command, paths.REPOSITORY], log, env=_environment())


def from_folder(
    folder: Path, reference: str, log: Path, environment: Mapping[str, str], entrypoint: str | None = None
) -> None:
    """An image of one layer: what the folder holds."""
    container = shell.output([*_store(), "from", "scratch"], env=_environment()).strip()
    shell.run([*_store(), "add", "--quiet", container, folder, "/"], log, env=_environment())
    settings = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
    if entrypoint:
        settings += ["--entrypoint", entrypoint]
    shell.run([*_store(), "config", *settings, container], log, env=_environment())
    shell.run([*_store(), "commit", "--quiet", "--rm", container, reference], log, env=_environment())


def unmount() -> None:
    """A build that was killed leaves the store mounted over itself, and no hard link leads out of a mount."""
    shell.succeeds(["umount", storage() / "overlay"])  # it fails where nothing is mounted


def inspect(reference: str) -> dict[str, Any]:
    return dict(json.loads(shell.output([*_store(), "inspect", "--type", "image", reference])))


def remove(reference: str) -> None:
    shell.succeeds([*_store(), "rmi", "--force", reference])


def references() -> list[str]:
    found = shell.output([*_store(), "images", "--format", "{{.Name}}:{{.Tag}}", "--noheading"])
    return [line for line in found.splitlines() if not line.startswith("<none>")]
