"""Reading images from buildah's store.

buildah and containerd store an unpacked layer in the same form, a folder for overlayfs. Therefore an image of several
gigabytes is passed on as hard links, in seconds, instead of being packed, copied and unpacked.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_cluster import buildah
from local_cluster.errors import UserError


@dataclass(frozen=True)
class Layer:
    """An unpacked layer. `chain_id` is its name in containerd; `parent` is that of the layer below, or empty."""

    chain_id: str
    parent: str
    folder: Path


@dataclass(frozen=True)
class StoredImage:
    """Manifest and config of an image as JSON, and its layers from the lowest to the highest."""

    manifest: str
    config: str
    layers: tuple[Layer, ...]


def read_image(reference: str) -> StoredImage:
    """Read an image from buildah's store. Raises UserError if its config does not match its manifest."""
    description = buildah.inspect(reference)
    manifest, config = str(description["Manifest"]), str(description["Config"])
    if json.loads(manifest)["config"]["digest"] != compute_digest(config):
        raise UserError(
            f"buildah's record of {reference} is damaged: remove {buildah.get_storage_path()} and run `make image`"
        )
    diff_ids = json.loads(config)["rootfs"]["diff_ids"]
    folders = _find_layer_folders(str(description["FromImageID"]))
    layer_chain_ids = compute_chain_ids(diff_ids)
    layers = zip(layer_chain_ids, ["", *layer_chain_ids[:-1]], folders, strict=True)
    return StoredImage(manifest, config, tuple(Layer(*layer) for layer in layers))


def compute_digest(content: str) -> str:
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def compute_chain_ids(diff_ids: list[str]) -> list[str]:
    """Return the ChainIDs of layers by their DiffIDs, from the lowest layer, as the OCI image specification defines."""
    ids: list[str] = []
    for diff_id in diff_ids:
        ids.append(compute_digest(f"{ids[-1]} {diff_id}") if ids else diff_id)
    return ids


def _find_layer_folders(image_id: str) -> list[Path]:
    """Return the folders of an image's layers, from the lowest, by the index files of buildah's store."""
    top_layers = {entry["id"]: entry["layer"] for entry in _read_index("images")}
    parents = {entry["id"]: entry.get("parent", "") for entry in _read_index("layers")}
    folders: list[Path] = []
    layer = str(top_layers[image_id])
    while layer:
        folders.insert(0, buildah.get_storage_path() / "overlay" / layer / "diff")
        layer = parents[layer]
    return folders


def _read_index(index_name: str) -> list[dict[str, Any]]:
    file = buildah.get_storage_path() / f"overlay-{index_name}" / f"{index_name}.json"
    return list(json.loads(file.read_text()))
