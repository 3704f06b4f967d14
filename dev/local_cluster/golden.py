"""The golden containerd root in the cache: it contains all images unpacked, and new clusters get hard-linked copies."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from local_cluster import buildah, cache, containerd, images, paths, shell, store
from local_cluster.console import log_step
from local_cluster.containerd import ContainerdClient
from local_cluster.errors import UserError
from local_cluster.images import Image

START_TIMEOUT_SECONDS = 30


def _get_images_folder() -> Path:
    return paths.get_cache_folder() / "images"


def _get_golden_root() -> Path:
    return _get_images_folder() / "root"


def has_images(selected: Iterable[Image]) -> bool:
    """Return whether these images, of any sources, were imported before."""
    return all(image.full_name in _read_imported() for image in selected)


def lock_images() -> AbstractContextManager[None]:
    """Return the lock for building, importing and copying, so that no image is replaced while it is copied."""
    return cache.lock("images")


def import_built_images(selected: Iterable[Image]) -> None:
    """Import those of the selected images that were built since they were last imported."""
    imported_references = _read_imported()
    new_references = {
        name: reference
        for name, reference in images.list_built_references(selected).items()
        if imported_references.get(name) != reference
    }
    if not new_references:
        return
    with _run_containerd() as client:
        for name, reference in new_references.items():
            with log_step(f"importing {name.rpartition('/')[2]} into containerd", _get_log_path()):
                client.import_image(store.read_image(reference), name)
            _record_import(name, reference)


def _read_imported() -> dict[str, str]:
    """Return the imported images: the name in containerd, and the reference in buildah's store it was imported from."""
    record_file = _get_images_folder() / "imported.json"
    return dict(json.loads(record_file.read_text())) if record_file.exists() else {}


def _record_import(name: str, reference: str) -> None:
    partial = _get_images_folder() / "imported.partial"
    partial.write_text(json.dumps({**_read_imported(), name: reference}))
    partial.rename(_get_images_folder() / "imported.json")


def _get_log_path() -> Path:
    return paths.get_logs_folder() / "import.log"


def import_outdated(client: ContainerdClient) -> list[str]:
    """Import missing and outdated images into a running containerd. Return their names."""
    with lock_images():
        loaded_digests = client.list_images()
        stored_images = {
            name: store.read_image(reference)
            for name, reference in _read_imported().items()
            if buildah.exists(reference)  # removed if its sources changed and another command built its own images
        }
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
    """Run containerd on the golden root until the block ends."""
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
            raise UserError(f"containerd did not start: see {_get_log_path()}")
        time.sleep(0.1)


def copy_root(target: Path) -> None:
    """Copy the golden root to `target`: layers, which never change, as hard links, and databases as copies."""
    with lock_images():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _get_golden_root().exists():
            raise UserError("no images were built yet: run `make image`")
        shell.capture_output(["cp", "--archive", "--link", _get_golden_root(), target])
        for database in _get_golden_root().rglob("*.db"):
            copy = target / database.relative_to(_get_golden_root())
            copy.unlink()
            shutil.copy2(database, copy)
