"""Text in manifests that YAML reads as something else: names, prompts and the like."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.trainer.manifest_files import build_manifest, load_config

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError


def build_manifest_with_metadata(metadata: str) -> str:
    return build_manifest().replace(
        "metadata: {name: bot, namespace: team}", f"metadata:\n  labels: {{a: b}}\n  {metadata}"
    )


@pytest.mark.parametrize("name", ["2024-01-05", "2024-13-45", "'2024'", '"true"', "x" * 52])
def test_metadata_name_text_is_taken_as_written(tmp_path: Path, name: str) -> None:
    plain = name.strip("'\"")
    config = load_config(tmp_path, build_manifest_with_metadata(f"name: {name}\n  namespace: {name}"))
    assert config.output.uri == f"s3://results/{plain}/{plain}"


NO_TEXT = {"2024": "2024", "1.5": "1.5", "true": "true", "null": "null", "~": "null", "": "null"}


@pytest.mark.parametrize(("given", "shown"), NO_TEXT.items())
@pytest.mark.parametrize("field", ["name", "namespace"])
def test_metadata_name_other_than_text_is_refused(tmp_path: Path, field: str, given: str, shown: str) -> None:
    metadata = f"name: {given}" if field == "name" else f"name: bot\n  namespace: {given}"
    line = 5 if field == "name" else 6
    with pytest.raises(TrainerError) as error:
        load_config(tmp_path, build_manifest_with_metadata(metadata))
    assert error.value.reason is Reason.CONFIG_INVALID
    assert f"metadata.{field}: text is required: quote it (it is {shown}) (line {line})" in error.value.message


@pytest.mark.parametrize("metadata", ["generateName: bot-", "namespace: team"])
def test_metadata_without_name_is_refused(tmp_path: Path, metadata: str) -> None:
    with pytest.raises(TrainerError, match=r"metadata\.name: this field is required: set a name.*\(line 3\)") as error:
        load_config(tmp_path, build_manifest_with_metadata(metadata))
    assert error.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize("name", ["a.b", "A", "-a", "a-", "a_b", "''", "x" * 53, '"a\\n"', "2024-01-05T10:00:00Z"])
def test_metadata_name_invalid_for_api_server_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        TrainerError, match=r"metadata\.name: the name of a FineTuneJob must have 1 to 52 characters"
    ) as error:
        load_config(tmp_path, build_manifest_with_metadata(f"name: {name}"))
    assert error.value.reason is Reason.CONFIG_INVALID


def test_metadata_name_and_spec_errors_are_both_reported(tmp_path: Path) -> None:
    with pytest.raises(TrainerError) as error:
        load_config(tmp_path, build_manifest_with_metadata("name: 5").replace("epochs: 1", "epochs: 0"))
    assert "metadata.name: text is required" in error.value.message
    assert "spec.training.epochs: Input should be greater than 0" in error.value.message


UNQUOTED = {
    "fields": (
        "s3://data/a.jsonl",
        "s3://data/a.jsonl\n      fields: {prompt: 2024}",
        "dataset.sources[0].fields.prompt",
    ),
    "prompts": ("epochs: 1", "epochs: 1\nevaluation: {samplePrompts: [true]}", "evaluation.samplePrompts[0]"),
    "revision": ("s3://models/tiny", "hf://a/b, revision: 1.0", "model.revision"),
}


@pytest.mark.parametrize(("old", "new", "field"), UNQUOTED.values(), ids=UNQUOTED)
def test_spec_unquoted_number_or_boolean_for_text_is_refused(tmp_path: Path, old: str, new: str, field: str) -> None:
    with pytest.raises(TrainerError) as error:
        load_config(tmp_path, build_manifest(old, new))
    assert f"spec.{field}: text is required: quote it" in error.value.message


def test_spec_unquoted_date_for_text_is_taken_as_written(tmp_path: Path) -> None:
    text = build_manifest("epochs: 1", "epochs: 1\nevaluation: {samplePrompts: [2024-01-05, 2024-01-05T10:00:00Z]}")
    assert load_config(tmp_path, text).evaluation.sample_prompts == ["2024-01-05", "2024-01-05T10:00:00Z"]
