"""Tests of the selection of data files in a folder: what is read, what is left out, and how that is named."""

from __future__ import annotations

import pytest

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.data_files import select_data_files

HIDDEN = "hidden or temporary"
LEFT_OUT = {
    "marker of Spark": ("d/_SUCCESS", HIDDEN),
    "unfinished task": ("d/_temporary/0/part-0.json", HIDDEN),
    "hidden file": ("d/.a.jsonl", HIDDEN),
    "hidden folder": ("d/.ipynb_checkpoints/a.jsonl", HIDDEN),
    "folder information": ("d/.DS_Store", HIDDEN),
    "archive of a Mac": ("d/__MACOSX/a.jsonl", HIDDEN),
    "backup": ("d/a.jsonl~", HIDDEN),
    "temporary": ("d/a.jsonl.tmp", HIDDEN),
    "upload": ("d/a.jsonl._COPYING_", HIDDEN),
    "checksum": ("d/a.jsonl.crc", HIDDEN),
    "folder of Hadoop": ("d/x_$folder$", HIDDEN),
    "text": ("d/README.md", "of another type"),
    "document without a suffix": ("d/LICENSE", "of another type"),
    "archive": ("d/a.zip", "of another type"),
    "record of a data set": ("d/dataset_infos.json", "of another type"),
}


@pytest.mark.parametrize(("name", "kind"), LEFT_OUT.values(), ids=LEFT_OUT)
@pytest.mark.parametrize("path", ["d/", "d/**", ""])
def test_select_folder_leaves_out_and_names(name: str, kind: str, path: str) -> None:
    selection = select_data_files("s3://data/d/", path, ["d/a.jsonl", name])
    assert selection.names == ["d/a.jsonl"]
    shown = name.removeprefix("d/") if path else name
    assert selection.left_out == {kind: [shown]}
    assert selection.describe_left_out() == f"1 file is left out: {kind} ({shown})"


READ = {
    "part without a suffix": ("d/", "d/part-00000"),
    "compressed part": ("d/", "d/part-00000.gz"),
    "upper case": ("d/", "d/A.JSONL"),
    "tabs": ("d/", "d/a.tsv.gz"),
    "partition": ("d/", "d/_day=1/a.parquet"),
    "name of a document": ("d/", "d/readme.jsonl"),
    "hidden by pattern": ("d/.a*", "d/.a.jsonl"),
    "folder by pattern": ("d/_x/*.jsonl", "d/_x/a.jsonl"),
    "suffix by pattern": ("d/*.txt", "d/a.txt"),
}


@pytest.mark.parametrize(("path", "name"), READ.values(), ids=READ)
def test_select_data_file_is_read(path: str, name: str) -> None:
    assert select_data_files("s3://data/d/", path, [name]).names == [name]


def test_select_results_of_runs_are_left_out() -> None:
    names = ["d/a.jsonl", "d/out/x/adapter_config.json", "d/out/x/evaluation.jsonl", "d/out/x/merged/config.json"]
    selection = select_data_files("s3://data/d/", "d/**/*.jsonl", names)
    assert selection.names == ["d/a.jsonl"]
    assert selection.left_out == {"results of runs": ["out/x/evaluation.jsonl"]}
    own = select_data_files("s3://data/d/", "d/", ["d/a.jsonl", "d/out/y/evaluation.jsonl"], output_folder="d/out/y")
    assert own.names == ["d/a.jsonl"]


def test_select_result_that_another_run_is_uploading_is_left_out() -> None:
    """`adapter_config.json` is uploaded last. Until then, other runs would read the scores of rows as data."""
    names = ["d/a.jsonl", "d/out/x/.upload.json", "d/out/x/evaluation.jsonl", "d/out/x/evaluation.json"]
    assert select_data_files("s3://data/d/", "d/", names).names == ["d/a.jsonl"]


def test_select_folder_of_a_result_is_read_if_named() -> None:
    names = ["x/adapter_config.json", "x/evaluation.jsonl"]
    assert select_data_files("s3://data/x/", "x/*.jsonl", names).names == ["x/evaluation.jsonl"]


def test_select_nothing_readable_lists_what_is_there() -> None:
    with pytest.raises(TrainerError) as error:
        select_data_files("s3://data/d/", "d/", [*(f"d/{number}.xlsx" for number in range(7)), "d/_SUCCESS"])
    assert error.value.reason is Reason.DATA_NOT_FOUND
    assert error.value.message.startswith("s3://data/d/: there are no data files; 8 files are left out: ")
    assert "of another type (0.xlsx, 1.xlsx, 2.xlsx, 3.xlsx, 4.xlsx, and 2 more)" in error.value.message
    assert "expected .jsonl, .json, .csv, .tsv or .parquet" in error.value.message
