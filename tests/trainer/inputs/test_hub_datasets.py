"""Datasets of the hub: which files a source names, what is recorded of them, and the error for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.hub_server import TOKEN, HubHandler, hub_endpoint

from finetune_trainer.contract import DATASET_HUB_TOKEN_FILE_ENV, HUB_TOKEN_FILE_ENV, DataSource, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.hub_datasets import HubDataListing, list_hub_data

__all__ = ["hub_endpoint"]
pytestmark = pytest.mark.usefixtures("hub_endpoint")

ROW = json.dumps({"prompt": "a", "completion": "b"}).encode() + b"\n"
CARD = b"""---
configs:
- config_name: english
  data_files:
  - {split: train, path: en/*.jsonl}
  - {split: test, path: en/held-out/*}
- config_name: german
  default: true
  data_files:
  - {split: train, path: [de/a.jsonl, de/b.jsonl]}
---
Notes.
"""
CONFIGURED = {
    "README.md": CARD,
    **dict.fromkeys(("en/x.jsonl", "en/held-out/y.jsonl", "de/a.jsonl", "de/b.jsonl", "de/c.jsonl"), ROW),
}
SHARDED = {
    "README.md": b"no configs",
    "dataset_infos.json": b"{}",
    "data/train-00000-of-00002.parquet": b"p0",
    "data/train-00001-of-00002.parquet": b"p1",
    "data/validation-00000-of-00001.parquet": b"p2",
}
NESTED = {
    "README.md": b"",
    "LICENSE": b"",
    ".hidden.jsonl": b"",
    "raw/_SUCCESS": b"",
    **dict.fromkeys(("raw/a.jsonl", "raw/b.csv.gz", "raw/deep/c.parquet", "raw/notes.txt"), b"x"),
}


def list_data(uri: str, **fields: Any) -> HubDataListing:
    return list_hub_data(DataSource(uri=uri, **fields))


RESOLVED = {
    "default subset and split": (CONFIGURED, "", {}, ["de/a.jsonl", "de/b.jsonl"]),
    "subset": (CONFIGURED, "", {"subset": "english"}, ["en/x.jsonl"]),
    "split": (CONFIGURED, "", {"subset": "english", "split": "test"}, ["en/held-out/y.jsonl"]),
    "shards": (SHARDED, "", {}, ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
    "split of shards": (SHARDED, "", {"split": "validation"}, ["data/validation-00000-of-00001.parquet"]),
    "one file": (CONFIGURED, "/de/c.jsonl", {}, ["de/c.jsonl"]),
    "hidden file by name": (NESTED, "/.hidden.jsonl", {}, [".hidden.jsonl"]),
    "text file by name": (NESTED, "/raw/notes.txt", {}, ["raw/notes.txt"]),
    "text file by suffix": (NESTED, "/raw/*.txt", {}, ["raw/notes.txt"]),
    "folder": (NESTED, "/raw", {}, ["raw/a.jsonl", "raw/b.csv.gz", "raw/deep/c.parquet"]),
    "glob": (NESTED, "/raw/*", {}, ["raw/a.jsonl", "raw/b.csv.gz"]),
    "deep glob": (NESTED, "/**/*.parquet", {}, ["raw/deep/c.parquet"]),
}


@pytest.mark.parametrize(("files", "path", "fields", "expected"), RESOLVED.values(), ids=RESOLVED)
def test_hub_data_source_names_files(
    files: dict[str, bytes], path: str, fields: dict[str, str], expected: list[str]
) -> None:
    HubHandler.datasets.push("org/data", files)
    assert [file.name for file in list_data(f"hf://datasets/org/data{path}", **fields).files] == expected


def test_hub_data_left_out_files_are_counted() -> None:
    HubHandler.datasets.push("org/data", NESTED)
    selection = list_data("hf://datasets/org/data/raw/").selection
    assert selection.skipped_count == 2
    assert "hidden or temporary (_SUCCESS); of another type (notes.txt)" in selection.describe_left_out()


def test_hub_data_is_pinned_to_commit(tmp_path: Path) -> None:
    first = HubHandler.datasets.push("org/data", SHARDED)
    listing = list_data("hf://datasets/org/data")
    second = HubHandler.datasets.push("org/data", SHARDED | {"data/train-00000-of-00002.parquet": b"changed"})
    files = listing.fetch(tmp_path, lambda _: None)
    assert [file.uri for file in files] == [f"hf://datasets/org/data@{first}/{file.name}" for file in listing.files]
    assert [file.path.read_bytes() for file in files] == [b"p0", b"p1"]
    assert [file.etag for file in files] == [file.sha256 for file in files]  # the digest that the hub lists
    assert [record.uri for record in listing.list_records()] == [file.uri for file in files]
    moved = list_data("hf://datasets/org/data").list_records()
    assert moved != listing.list_records()
    assert second in moved[0].uri


def test_hub_data_damaged_download_is_refused(tmp_path: Path) -> None:
    HubHandler.datasets.push("org/data", SHARDED)
    listing = list_data("hf://datasets/org/data")
    HubHandler.datasets.commits["org/data", listing.dataset.commit].files["data/train-00000-of-00002.parquet"] = b"px"
    with pytest.raises(TrainerError, match="does not match the digest that the hub lists") as error:
        listing.fetch(tmp_path, lambda _: None)
    assert error.value.reason is Reason.STORAGE_CORRUPT


@pytest.mark.parametrize(
    ("uri", "branch"),
    [
        ("hf://datasets/org/data@v1/de/a.jsonl", "v1"),
        ("hf://datasets/org/data@refs/convert/parquet/de/a.jsonl", "refs/convert/parquet"),
        ("hf://datasets/org/data@feature%2Fx", "feature/x"),
    ],
)
def test_hub_data_revision_is_read(uri: str, branch: str) -> None:
    HubHandler.datasets.push("org/data", {"other.jsonl": ROW})
    commit = HubHandler.datasets.push("org/data", CONFIGURED, branch)
    assert all(f"@{commit}/" in record.uri for record in list_data(uri).list_records())


CONVERTED = {
    ".gitattributes": b"",
    **dict.fromkeys(("en/train/0000.parquet", "en/train/0001.parquet", "en/test/0000.parquet"), b"p"),
    "de/partial-train/0000.parquet": b"p",
}


@pytest.mark.parametrize("revision", ["refs/convert/parquet", "refs%2Fconvert%2Fparquet"])
def test_hub_data_converted_files_are_those_of_subset_and_split(revision: str) -> None:
    HubHandler.datasets.push("org/data", CONVERTED, "refs/convert/parquet")
    uri = f"hf://datasets/org/data@{revision}"
    train = list_data(uri, subset="en")
    assert [file.name for file in train.files] == ["en/train/0000.parquet", "en/train/0001.parquet"]
    assert [file.name for file in list_data(uri, subset="en", split="test").files] == ["en/test/0000.parquet"]
    for fields, message in (
        ({}, "it has several subsets and no default; set subset to one of de, en"),
        ({"subset": "fr"}, "there is no subset 'fr'; set subset to one of de, en"),
        ({"subset": "de"}, "there is no split 'train'; its splits are partial-train"),
    ):
        with pytest.raises(TrainerError, match=message):
            list_data(uri, **fields)


MISTAKES: dict[str, tuple[str, dict[str, str], Reason, str]] = {
    "repository": ("org/none", {}, Reason.DATA_NOT_FOUND, "the dataset does not exist or is private: check the name"),
    "revision": ("org/data@nowhere", {}, Reason.DATA_NOT_FOUND, "the dataset has no such branch, tag or commit"),
    "subset": ("org/data", {"subset": "fr"}, Reason.DATA_NOT_FOUND, "set subset to one of english, german"),
    "split": ("org/data", {"split": "test"}, Reason.DATA_NOT_FOUND, "there is no split 'test'; its splits are train"),
    "file": ("org/data/fr/index.csv", {}, Reason.DATA_NOT_FOUND, "there are no files; check the URI"),
    "encoded name": ("org/data/de%2Fa.jsonl", {}, Reason.DATA_NOT_FOUND, "there are no files; is it de/a.jsonl?"),
    "brackets": ("org/data/de/[ab].jsonl", {}, Reason.DATA_NOT_FOUND, "only *, ? and ** are wildcards"),
    "branch with a slash": ("org/data@feature/x", {}, Reason.DATA_NOT_FOUND, "write '/' in a revision as %2F"),
    "part of a split": ("org/data", {"split": "train[:9]"}, Reason.DATA_NOT_FOUND, "there is no split 'train[:9]'"),
    "script": ("org/script", {}, Reason.DATA_INVALID, "its subsets cannot be resolved (No (supported) data files"),
    "saved to disk": ("org/saved", {}, Reason.DATA_NOT_FOUND, "of another type (state.json); expected .jsonl"),
    "card is no YAML": ("org/yaml", {}, Reason.DATA_INVALID, "its subsets cannot be resolved (while parsing a flow"),
    "glob": ("org/data/fr/*.jsonl", {}, Reason.DATA_NOT_FOUND, "no file matches this pattern"),
    "types": ("org/pictures", {}, Reason.DATA_NOT_FOUND, "of another type (a.png, b.png); expected .jsonl, .json"),
    "no choice": ("org/choice", {}, Reason.DATA_NOT_FOUND, "it has several subsets and no default; set subset to one"),
    "card": ("org/card", {}, Reason.DATA_INVALID, "its subsets cannot be resolved"),
    "gated": ("org/gated", {}, Reason.AUTH_FAILED, "/datasets/org/gated and set dataset.tokenSecretRef"),
    "hub": ("org/broken", {}, Reason.STORAGE_UNREACHABLE, "the hub responded with status 500"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "reason", "message"), MISTAKES.values(), ids=MISTAKES)
def test_hub_data_mistake_has_reason_and_remedy(
    path: str, fields: dict[str, str], reason: Reason, message: str
) -> None:
    HubHandler.datasets.push("org/data", CONFIGURED)
    HubHandler.datasets.push("org/pictures", {".gitattributes": b"", "a.png": b"", "b.png": b""})
    HubHandler.datasets.push("org/choice", CONFIGURED | {"README.md": CARD.replace(b"  default: true\n", b"")})
    HubHandler.datasets.push("org/card", {"README.md": b"---\nconfigs: 7\n---\n", "a.jsonl": ROW})
    HubHandler.datasets.push("org/script", {".gitattributes": b"", "script.py": b"", "data.zip": b"PK\3\4"})
    HubHandler.datasets.push("org/saved", dict.fromkeys(("data-0.arrow", "dataset_info.json", "state.json"), b"{}"))
    HubHandler.datasets.push("org/yaml", {"README.md": b"---\nconfigs: [\n---\n", "a.jsonl": ROW})
    with pytest.raises(TrainerError) as error:
        list_data(f"hf://datasets/{path}", **fields)
    assert error.value.reason is reason, error.value.message
    assert message in error.value.message
    assert "\n" not in error.value.message


def test_hub_data_card_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(ROW)
    card = f"---\nconfigs:\n- {{config_name: default, data_files: [a.jsonl, {tmp_path}/b.jsonl]}}\n---\n"
    HubHandler.datasets.push("org/data", {"README.md": card.encode(), "a.jsonl": ROW})
    with pytest.raises(TrainerError, match="name the files with a path or a glob") as error:
        list_data("hf://datasets/org/data")
    assert error.value.reason is Reason.DATA_INVALID


def test_hub_data_token_of_dataset_precedes_that_of_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("dataset", "wrong_canary"), ("model", TOKEN)):
        (tmp_path / name).write_text(content)
    monkeypatch.setenv(HUB_TOKEN_FILE_ENV, str(tmp_path / "model"))
    with pytest.raises(TrainerError, match="accept the license") as error:
        list_data("hf://datasets/org/gated")
    assert error.value.reason is Reason.ACCESS_DENIED
    monkeypatch.setenv(DATASET_HUB_TOKEN_FILE_ENV, str(tmp_path / "dataset"))
    with pytest.raises(TrainerError, match=r"check dataset\.tokenSecretRef") as error:
        list_data("hf://datasets/org/gated")
    assert error.value.reason is Reason.AUTH_FAILED
    assert "canary" not in error.value.message
