"""Files of others at the output: never replaced, and named before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.untrained_runs import EXPORTED_FILES, build_config, prefix, publish, run_untrained

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.storage import S3

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server

__all__ = ["prefix"]
pytestmark = pytest.mark.s3

WITH_MERGED = {"merged": True}


def read_all_objects(s3: S3Server, uri: str) -> dict[str, bytes]:
    return {key: s3.get(f"s3://results/{key}") for key in s3.list_keys(uri)}


def assert_output_exists(config: TrainerConfig, scratch: Path) -> str:
    with pytest.raises(TrainerError) as error:
        run_untrained(config, scratch)
    assert error.value.reason is Reason.OUTPUT_EXISTS
    return error.value.message


def check_foreign_files(config: TrainerConfig) -> None:
    """Check the output prefix, as a run does before it trains."""
    OutputPrefix(S3(config.storage), config).check_foreign_files()


def publish_until_dropped(config: TrainerConfig, scratch: Path, proxy: FaultyProxy, last: str) -> None:
    """Publish until the file `last`, whose upload fails as if the run were killed."""
    proxy.dropped_key = last
    with pytest.raises(TrainerError):
        publish(config, scratch)
    proxy.dropped_key = "\0"


FOREIGN = {
    "a file of the user": ({"README.md": b"my notes"}, {}, "(README.md)"),
    "another tool's adapter": ({"adapter_model.safetensors": b"other"}, {}, "(adapter_model.safetensors)"),
    "a file of another name": ({"plan.txt": b"x"}, {}, "(plan.txt)"),
    "an empty file": ({"empty": b""}, {}, "(empty)"),
    "many": ({f"{n}.bin": b"x" for n in range(5)}, {}, "(0.bin, 1.bin, 2.bin and 2 more)"),
    "merged": ({"merged/config.json": b"{}"}, WITH_MERGED, "(merged/config.json)"),
}


@pytest.mark.parametrize(("files", "output", "named"), FOREIGN.values(), ids=FOREIGN)
def test_run_foreign_files_are_named_and_kept(
    s3: S3Server, prefix: str, tmp_path: Path, files: dict[str, bytes], output: dict[str, Any], named: str
) -> None:
    for name, content in files.items():
        s3.put(f"{prefix}/{name}", content)
    before = read_all_objects(s3, prefix)
    config = build_config(s3, prefix)
    config = config.model_copy(update={"output": config.output.model_copy(update=output)})
    message = assert_output_exists(config, tmp_path)
    assert message.startswith(f"{prefix} contains files that this run has not published {named}; ")
    assert message.endswith("change output.uri or remove them")
    assert read_all_objects(s3, prefix) == before


HARMLESS = {
    "folder markers": {"": b"", "merged/": b""},
    "files in another folder": {"notes/README.md": b"mine", "v2/manifest.json": b"{}"},
    "a merged model that was not requested": {"merged/config.json": b"{}"},
    "control objects": {
        ".rejected/abc/report.html": b"x",
        ".failed/abc/run.log": b"x",
        ".checkpoints/abc/step-1/checkpoint.json": b"{}",
    },
}


@pytest.mark.parametrize("files", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("slash", ["", "/"])
def test_run_unrelated_files_are_accepted(s3: S3Server, prefix: str, files: dict[str, bytes], slash: str) -> None:
    for name, content in files.items():
        s3.put(f"{prefix}/{name}", content)
    before = read_all_objects(s3, prefix)
    check_foreign_files(build_config(s3, prefix + slash))
    assert read_all_objects(s3, prefix) == before


def test_run_after_own_partial_upload_is_accepted(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy
) -> None:
    config = build_config(s3, prefix)
    for last in ("README.md", "tokenizer.json", "manifest.json"):  # each attempt has other files than the one before
        publish_until_dropped(config, tmp_path / last, proxy, last)
        check_foreign_files(config)
    assert publish(config, tmp_path).reason is Reason.COMPLETED
    assert not [key for key in s3.list_keys(prefix) if "/." in key]


def test_run_after_own_partial_upload_names_foreign_files(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy
) -> None:
    config = build_config(s3, prefix)
    publish_until_dropped(config, tmp_path, proxy, "README.md")
    s3.put(f"{prefix}/README.md", b"notes of a user instead of the model card")
    assert "(README.md)" in assert_output_exists(config, tmp_path)


def test_run_after_partial_upload_of_other_config_is_refused(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy
) -> None:
    publish_until_dropped(build_config(s3, prefix), tmp_path, proxy, "manifest.json")
    message = assert_output_exists(build_config(s3, prefix, training={"maxSteps": 2}), tmp_path)
    assert "(README.md, adapter_config.json, adapter_model.safetensors and 3 more)" in message


def test_publish_foreign_file_appearing_late_writes_nothing(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = build_config(s3, prefix)
    check_foreign_files(config)
    s3.put(f"{prefix}/.checkpoints/abc/step-1/checkpoint.json", b"{}")
    s3.put(f"{prefix}/tokenizer.json", b"another's")
    before = read_all_objects(s3, prefix)
    with pytest.raises(TrainerError, match="contains files that this run has not published") as error:
        publish(config, tmp_path)
    assert error.value.reason is Reason.OUTPUT_EXISTS
    assert read_all_objects(s3, prefix) == before


def test_run_output_bucket_root_sees_foreign_files(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    bucket = tmp_path.name.replace("_", "-")[:60].strip("-")
    s3.client.create_bucket(Bucket=bucket)
    s3.put(f"s3://{bucket}/mine.txt", b"x")
    config = build_config(s3, f"s3://{bucket}//")
    assert "(mine.txt)" in assert_output_exists(config, tmp_path)
    s3.client.delete_object(Bucket=bucket, Key="mine.txt")
    assert publish(config, tmp_path).reason is Reason.COMPLETED
    assert s3.client.get_object(Bucket=bucket, Key="README.md")["Body"].read() == EXPORTED_FILES["README.md"]
    assert run_untrained(config, tmp_path).reason is Reason.ALREADY_COMPLETE


def test_run_without_conditional_writes_names_foreign_files(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy
) -> None:
    proxy.ignores_conditions = True
    s3.put(f"{prefix}/README.md", b"my notes")
    assert "(README.md)" in assert_output_exists(build_config(s3, prefix), tmp_path)
    assert s3.get(f"{prefix}/README.md") == b"my notes"


def test_upload_record_names_config_and_files(s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy) -> None:
    config = build_config(s3, prefix)
    publish_until_dropped(config, tmp_path, proxy, "adapter_model.safetensors")
    record = json.loads(s3.get(f"{prefix}/.upload.json"))
    assert record["configDigest"] == config.digest()
    assert {file["path"] for file in record["files"]} == EXPORTED_FILES.keys() | {"finetune_config.json"}
    assert {len(file["sha256"]) for file in record["files"]} == {64}
