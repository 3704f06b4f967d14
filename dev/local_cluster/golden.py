"""One containerd root in the cache that holds all images unpacked; each cluster starts from a copy by hard links."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from local_cluster import cache, containerd, images, paths, shell, store
from local_cluster.console import log_step
from local_cluster.containerd import ContainerdClient
from local_cluster.errors import UserError

START_TIMEOUT_SECONDS = 30


def _get_images_folder() -> Path:
    return paths.get_cache_folder() / "images"


def _get_golden_root() -> Path:
    return _get_images_folder() / "root"


def has_images() -> bool:
    return (_get_images_folder() / "imported.json").exists()


def lock_images() -> AbstractContextManager[None]:
    """Held by whoever builds, imports or copies: an image must not be replaced under a copy's hands."""
    return cache.lock("images")


def import_built_images() -> None:
    """Import what was built since the last time."""
    built_references = images.list_built_references()
    if _read_imported() == built_references:
        return
    with _run_containerd() as client:
        for name, reference in built_references.items():
            if _read_imported().get(name) != reference:
                with log_step(f"{name.rpartition('/')[2]} imported", _get_log_path()):
                    client.import_image(store.read_image(reference), name)
                _record_import(name, reference)


def _read_imported() -> dict[str, str]:
    """What the root holds: each image's name, and the build that it was imported from."""
    record_file = _get_images_folder() / "imported.json"
    return dict(json.loads(record_file.read_text())) if record_file.exists() else {}


def _record_import(name: str, reference: str) -> None:
    partial = _get_images_folder() / "imported.partial"
    partial.write_text(json.dumps({**_read_imported(), name: reference}))
    partial.rename(_get_images_folder() / "imported.json")


def _get_log_path() -> Path:
    return paths.get_logs_folder() / "import.log"


def import_outdated(client: ContainerdClient) -> list[str]:
    """Bring a running containerd up to date; the images that it did not have."""
    with lock_images():
        loaded_digests = client.list_images()
        stored_images = {name: store.read_image(reference) for name, reference in _read_imported().items()}
        outdated_names = [
            name
            for name, image in stored_images.items()
            if loaded_digests.get(name) != store.compute_digest(image.manifest)
        ]
        for name in outdated_names:
            client.import_image(stored_images[name], name)
        return outdated_names


@contextmanager
def _run_containerd() -> Iterator[ContainerdClient]:
    """containerd on the golden root, for as long as the block lasts."""
    run_folder = Path("/run/finetune-operator")
    cache.remove_folder(run_folder)
    run_folder.mkdir(parents=True)
    config_file = run_folder / "config.toml"
    client = ContainerdClient(run_folder / "containerd.sock")
    config_file.write_text(
        containerd.render_config(_get_golden_root(), run_folder / "state", client.socket, run_folder)
    )
    with (
        _get_log_path().open("ab") as log,
        subprocess.Popen(["containerd", "--config", config_file], stdout=log, stderr=log) as process,
    ):
        try:
            _wait_until_ready(client, process)
            yield client
        finally:
            process.terminate()


def _wait_until_ready(client: ContainerdClient, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not client.is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"containerd does not start: see {_get_log_path()}")
        time.sleep(0.1)


def copy_root(target: Path) -> None:
    """Layers never change, so links do; the databases are written to, so they are copied."""
    with lock_images():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _get_golden_root().exists():
            raise UserError("there are no images yet: build them first (make image)")
        shell.capture_output(["cp", "--archive", "--link", _get_golden_root(), target])
        for database in _get_golden_root().rglob("*.db"):
            copy = target / database.relative_to(_get_golden_root())
            copy.unlink()
            shutil.copy2(database, copy)
