"""Tests of image names, and of importing images from buildah's store into containerd."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from local_cluster import buildah, containerd, debian, images, store
from local_cluster.images import CPU_TRAINER, IMAGES, Image

ALL_IMAGES = (*IMAGES, CPU_TRAINER)

FIRST, SECOND, THIRD = (f"sha256:{letter * 64}" for letter in "abc")


def test_chain_ids_match_oci_specification() -> None:
    second = "sha256:" + hashlib.sha256(f"{FIRST} {SECOND}".encode()).hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} {THIRD}".encode()).hexdigest()
    assert store.compute_chain_ids([FIRST, SECOND, THIRD]) == [FIRST, second, third]
    assert store.compute_chain_ids([]) == []


@pytest.mark.parametrize(
    ("mount", "folder"),
    [
        ("mount -t bind /root/snapshots/1/fs /mnt -o rw,rbind", "/root/snapshots/1/fs"),
        ("mount -t overlay overlay /mnt -o index=off,workdir=/s/2/work,upperdir=/s/2/fs,lowerdir=/s/1/fs", "/s/2/fs"),
        ("mount -t overlay overlay /mnt -o lowerdir=/s/1/fs,upperdir=/s/2/fs", "/s/2/fs"),
    ],
)
def test_snapshot_folder_is_parsed_from_mount_command(mount: str, folder: str) -> None:
    assert containerd.parse_snapshot_folder(mount) == folder


@pytest.mark.parametrize("image", ALL_IMAGES, ids=lambda image: str(image.name))
def test_image_tag_depends_on_build_inputs(image: Image) -> None:
    same_image = Image(image.reference, image.dockerfile, build_arguments=image.build_arguments)
    other_image = Image(image.reference, image.dockerfile, build_arguments=("OTHER=argument",))
    assert same_image.built_reference == image.built_reference
    assert other_image.built_reference != image.built_reference
    assert image.built_reference.startswith(f"localhost/{image.name}:")


def test_images_have_distinct_tags() -> None:
    assert len({image.built_reference for image in ALL_IMAGES}) == len(ALL_IMAGES)


def test_image_full_name_has_registry_and_tag() -> None:
    assert images.TRAINER.full_name == "docker.io/library/finetune-trainer:dev"


def test_missing_packages_names_each_package_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        debian, "PACKAGES", {"no-such-ctr": "containerd", "no-such-containerd": "containerd", "sh": "dash"}
    )
    assert debian.find_missing_packages() == ["containerd"]


@pytest.mark.cluster  # needs root, like a local cluster
def test_unmount_after_killed_build_allows_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = tmp_path / "overlay"
    (overlay / "layer").mkdir(parents=True)
    (overlay / "layer" / "file").write_text("x")
    subprocess.run(["mount", "--bind", overlay, overlay], check=True)
    monkeypatch.setattr(buildah, "get_storage_path", lambda: tmp_path)
    buildah.unmount_storage()
    still_mounted = subprocess.run(["umount", overlay], check=False, capture_output=True).returncode == 0
    assert not still_mounted
    os.link(overlay / "layer" / "file", tmp_path / "elsewhere")
    buildah.unmount_storage()  # does nothing if nothing is mounted
