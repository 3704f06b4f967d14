"""containerd: its configuration, and a client that takes over an image by hard links."""

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster import buildah, shell
from local_cluster.errors import Problem
from local_cluster.store import Layer, StoredImage, digest

PAUSE_IMAGE = "docker.io/library/pause:dev"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_KEEP = "containerd.io/gc.root"  # the label that keeps containerd from collecting what no image names yet


def config(root: Path, state: Path, socket: Path, cni: Path) -> str:
    """Where root may not lower oom scores (no CAP_SYS_RESOURCE), containers start only with restrict_oom_score_adj."""
    return f"""\
version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{cni}"
"""


@dataclass(frozen=True)
class Client:
    """Runs ctr against one containerd; `enter` is put before it where the socket is in another namespace."""

    socket: Path
    enter: Sequence[str] = ()

    def command(self, *words: str) -> list[str]:
        return [*self.enter, "ctr", "--address", str(self.socket), "--namespace", "k8s.io", *words]

    def answers(self) -> bool:
        return shell.succeeds(self.command("version"))

    def images(self) -> dict[str, str]:
        """Each image's name and the digest of its manifest or index."""
        lines = self._run("images", "list").splitlines()[1:]
        return {words[0]: words[2] for words in (line.split() for line in lines)}

    def import_image(self, image: StoredImage, name: str) -> None:
        """Link the layers that are not here yet, then tell of the image itself."""
        present = set(self._run("snapshots", "list").split())
        new = [layer for layer in image.layers if layer.chain_id not in present]
        buildah.unmount()
        for layer in new:
            self._link(layer)
        self._run("images", "import", "-", stdin=_archive(image, name))
        for layer in new:  # from here on the image holds them; without it they may go
            self._run("snapshots", "label", layer.chain_id, f"{_KEEP}=")

    def _link(self, layer: Layer) -> None:
        key = f"link-{layer.chain_id}"
        self._run("snapshots", "remove", key, check=False)  # of an import that was interrupted
        self._run("snapshots", "prepare", key, *filter(None, [layer.parent]))
        folder = snapshot_folder(self._run("snapshots", "mounts", "/mnt", key))
        shell.output(["cp", "--archive", "--link", f"{layer.folder}/.", folder])
        self._run("snapshots", "commit", layer.chain_id, key)

    def _run(self, *words: str, stdin: bytes = b"", check: bool = True) -> str:
        result = subprocess.run(self.command(*words), input=stdin, capture_output=True, check=False)
        if check and result.returncode:
            raise Problem(f"ctr {' '.join(words[:2])}: {' '.join(result.stderr.decode(errors='replace').split())}")
        return result.stdout.decode()


def snapshot_folder(mount_command: str) -> str:
    """Where a new snapshot is written to, out of the command that would mount it."""
    upper = re.search(r"upperdir=([^,\s]+)", mount_command)
    if upper:
        return upper.group(1)
    return mount_command.split()[3]  # mount -t bind SOURCE TARGET …: a lowest layer


def _archive(image: StoredImage, name: str) -> bytes:
    """An OCI archive without layers: these are there already."""
    manifest = {"mediaType": _MANIFEST, "digest": digest(image.manifest), "size": len(image.manifest.encode())}
    entry = {**manifest, "annotations": {"io.containerd.image.name": name}}
    files = {
        "oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}),
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}),
        **{f"blobs/{digest(text).replace(':', '/')}": text for text in (image.manifest, image.config)},
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, text in files.items():
            header = tarfile.TarInfo(path)
            header.size = len(text.encode())
            archive.addfile(header, io.BytesIO(text.encode()))
    return stream.getvalue()
