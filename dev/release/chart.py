"""The chart of a release: a copy whose default images are the released ones, by their digests."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_VALUE_PATHS = {
    "finetune-operator": ("image",),
    "finetune-trainer": ("trainer", "image"),
    "finetune-task": ("task", "image"),
}
"""Where the values of the chart name each image."""
IMAGE_NAMES = tuple(_VALUE_PATHS)
_REFERENCE = re.compile(r"(?P<registry>[^/@]+(/[^/@]+)*)/(?P<name>[a-z0-9.-]+)@(?P<digest>sha256:[0-9a-f]{64})")


@dataclass(frozen=True)
class ReleasedImage:
    """An image in a registry."""

    registry: str
    name: str
    digest: str

    @classmethod
    def parse(cls, reference: str) -> "ReleasedImage":
        """Parse `REGISTRY/NAME@sha256:…`. Raises `ValueError` for another form or an unknown name."""
        found = _REFERENCE.fullmatch(reference)
        if found is None or found["name"] not in IMAGE_NAMES:
            raise ValueError(f"{reference} is not REGISTRY/NAME@sha256:… with a name of {', '.join(IMAGE_NAMES)}")
        return cls(found["registry"], found["name"], found["digest"])

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}@{self.digest}"


def write_release_chart(source: Path, target: Path, images: Mapping[str, ReleasedImage], repository: str) -> None:
    """Copy a chart to `target`, with the images and the annotations of a release.

    `repository` is the address of the source code. Comments of the values stay. Raises `ValueError` unless all images
    are given.
    """
    if set(images) != set(IMAGE_NAMES):
        raise ValueError(f"name all of {', '.join(IMAGE_NAMES)}")
    shutil.copytree(source, target)
    values = (target / "values.yaml").read_text(encoding="utf-8")
    for image in images.values():
        values = _fill_image(values, image)
    (target / "values.yaml").write_text(values, encoding="utf-8")
    metadata: dict[str, Any] = yaml.safe_load((source / "Chart.yaml").read_text(encoding="utf-8"))
    metadata["sources"] = [repository]
    metadata["annotations"] = _build_annotations(images, repository)
    (target / "Chart.yaml").write_text(yaml.safe_dump(metadata, sort_keys=False), encoding="utf-8")


def _fill_image(values: str, image: ReleasedImage) -> str:
    """Replace registry, repository and digest of an image in the text of the values."""
    path = _VALUE_PATHS[image.name]
    start = 0
    for depth, key in enumerate(path):
        found = re.compile(rf"^{'  ' * depth}{key}:\n", re.MULTILINE).search(values, start)
        if found is None:
            raise ValueError(f"the values have no {'.'.join(path)}")
        start = found.end()
    head, rest, indent = values[:start], values[start:], "  " * len(path)
    fields = {"registry": image.registry, "repository": image.name, "digest": image.digest}
    for field, value in fields.items():
        rest, count = re.subn(rf"^({indent}{field}: ).*$", rf"\g<1>{value}", rest, count=1, flags=re.MULTILINE)
        if not count:
            raise ValueError(f"the values have no {'.'.join(path)}.{field}")
    return head + rest


def _build_annotations(images: Mapping[str, ReleasedImage], repository: str) -> dict[str, str]:
    """Return the annotations that Artifact Hub reads: https://artifacthub.io/docs/topics/annotations/helm/"""
    listed = [{"name": name, "image": str(image)} for name, image in sorted(images.items())]
    links = [{"name": "source", "url": repository}, {"name": "support", "url": f"{repository}/issues"}]
    return {
        "artifacthub.io/images": yaml.safe_dump(listed, sort_keys=False),
        "artifacthub.io/license": "Apache-2.0",
        "artifacthub.io/links": yaml.safe_dump(links, sort_keys=False),
        "artifacthub.io/operator": "true",
    }
