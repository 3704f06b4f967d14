"""The configuration of containerd, and a client that imports images by hard links to buildah's layers."""

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster import buildah, shell
from local_cluster.errors import UserError
from local_cluster.store import Layer, StoredImage, compute_digest

PAUSE_IMAGE = "docker.io/library/pause:dev"
_MANIFEST_MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
_GC_ROOT_LABEL = "containerd.io/gc.root"  # protects a snapshot from garbage collection before an image refers to it


def render_config(root: Path, state: Path, socket: Path, cni_folder: Path) -> str:
    """Return the configuration file. restrict_oom_score_adj lets containers start without CAP_SYS_RESOURCE."""
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
  conf_dir = "{cni_folder}"
"""


@dataclass(frozen=True)
class ContainerdClient:
    """Runs ctr against one containerd; `command_prefix` enters its namespace if the socket is in another one."""

    socket: Path
    command_prefix: Sequence[str] = ()

    def build_command(self, *arguments: str) -> list[str]:
        return [*self.command_prefix, "ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]

    def is_ready(self) -> bool:
        return shell.succeeds(self.build_command("version"))

    def list_images(self) -> dict[str, str]:
        """Return the digest of the manifest or index of each image, by its name."""
        lines = self._run_ctr("images", "list").splitlines()[1:]
        return {columns[0]: columns[2] for columns in (line.split() for line in lines)}

    def import_image(self, image: StoredImage, name: str) -> None:
        """Create snapshots of missing layers by hard links, then import manifest and config of the image."""
        existing_snapshots = set(self._run_ctr("snapshots", "list").split())
        new_layers = [layer for layer in image.layers if layer.chain_id not in existing_snapshots]
        buildah.unmount_storage()
        for layer in new_layers:
            self._link_layer(layer)
        self._run_ctr("images", "import", "-", stdin=_build_archive(image, name))
        for layer in new_layers:  # the image protects them from now on, and only as long as it exists
            self._run_ctr("snapshots", "label", layer.chain_id, f"{_GC_ROOT_LABEL}=")

    def _link_layer(self, layer: Layer) -> None:
        key = f"link-{layer.chain_id}"
        self._run_ctr("snapshots", "remove", key, check=False)  # left by an interrupted import
        self._run_ctr("snapshots", "prepare", key, *filter(None, [layer.parent]))
        folder = parse_snapshot_folder(self._run_ctr("snapshots", "mounts", "/mnt", key))
        shell.capture_output(["cp", "--archive", "--link", f"{layer.folder}/.", folder])
        self._run_ctr("snapshots", "commit", layer.chain_id, key)

    def _run_ctr(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> str:
        result = subprocess.run(self.build_command(*arguments), input=stdin, capture_output=True, check=False)
        if check and result.returncode:
            raise UserError(
                f"ctr {' '.join(arguments[:2])}: {' '.join(result.stderr.decode(errors='replace').split())}"
            )
        return result.stdout.decode()


def parse_snapshot_folder(mount_command: str) -> str:
    """Return the folder that a new snapshot is written to, from the mount command that ctr prints for it."""
    upperdir = re.search(r"upperdir=([^,\s]+)", mount_command)
    if upperdir:
        return upperdir.group(1)
    return mount_command.split()[3]  # mount -t bind SOURCE TARGET …, for the lowest layer


def _build_archive(image: StoredImage, name: str) -> bytes:
    """Return an OCI archive with manifest and config only; the layers exist in containerd already."""
    manifest = {
        "mediaType": _MANIFEST_MEDIA_TYPE,
        "digest": compute_digest(image.manifest),
        "size": len(image.manifest.encode()),
    }
    entry = {**manifest, "annotations": {"io.containerd.image.name": name}}
    files = {
        "oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}),
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}),
        **{f"blobs/{compute_digest(text).replace(':', '/')}": text for text in (image.manifest, image.config)},
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, text in files.items():
            header = tarfile.TarInfo(path)
            header.size = len(text.encode())
            archive.addfile(header, io.BytesIO(text.encode()))
    return stream.getvalue()
