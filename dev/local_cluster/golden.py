"""One containerd root in the cache that holds all images unpacked; each cluster starts from a copy by hard links."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from local_cluster import cache, containerd, images, paths, shell, store
from local_cluster.console import step
from local_cluster.containerd import Client
from local_cluster.errors import Problem

START_SECONDS = 30


def _folder() -> Path:
    return paths.cache() / "images"


def _root() -> Path:
    return _folder() / "root"


def exists() -> bool:
    return (_folder() / "imported.json").exists()


def lock() -> AbstractContextManager[None]:
    """Held by whoever builds, imports or copies: an image must not be replaced under a copy's hands."""
    return cache.lock("images")


def update() -> None:
    """Import what was built since the last time."""
    wanted = images.built_references()
    if _imported() == wanted:
        return
    with _containerd() as client:
        for name, reference in wanted.items():
            if _imported().get(name) != reference:
                with step(f"{name.rpartition('/')[2]} imported", _log()):
                    client.import_image(store.read(reference), name)
                _note(name, reference)


def _imported() -> dict[str, str]:
    """What the root holds: each image's name, and the build that it was imported from."""
    notes = _folder() / "imported.json"
    return dict(json.loads(notes.read_text())) if notes.exists() else {}


def _note(name: str, reference: str) -> None:
    partial = _folder() / "imported.partial"
    partial.write_text(json.dumps({**_imported(), name: reference}))
    partial.rename(_folder() / "imported.json")


def _log() -> Path:
    return paths.logs() / "import.log"


def import_into(client: Client) -> list[str]:
    """Bring a running containerd up to date; the images that it did not have."""
    with lock():
        present = client.images()
        wanted = {name: store.read(reference) for name, reference in _imported().items()}
        new = [name for name, image in wanted.items() if present.get(name) != store.digest(image.manifest)]
        for name in new:
            client.import_image(wanted[name], name)
        return new


@contextmanager
def _containerd() -> Iterator[Client]:
    """containerd on the golden root, for as long as the block lasts."""
    run = Path("/run/finetune-operator")
    cache.remove(run)
    run.mkdir(parents=True)
    configuration = run / "config.toml"
    client = Client(run / "containerd.sock")
    configuration.write_text(containerd.config(_root(), run / "state", client.socket, run))
    with (
        _log().open("ab") as log,
        subprocess.Popen(["containerd", "--config", configuration], stdout=log, stderr=log) as process,
    ):
        try:
            _wait_for(client, process)
            yield client
        finally:
            process.terminate()


def _wait_for(client: Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not client.answers():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Problem(f"containerd does not start: see {_log()}")
        time.sleep(0.1)


def copy_root(target: Path) -> None:
    """Layers never change, so links do; the databases are written to, so they are copied."""
    with lock():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _root().exists():
            raise Problem("there are no images yet: build them first (make image)")
        shell.output(["cp", "--archive", "--link", _root(), target])
        for database in _root().rglob("*.db"):
            copy = target / database.relative_to(_root())
            copy.unlink()
            shutil.copy2(database, copy)
