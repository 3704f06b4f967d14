"""Users copy the samples, so each is valid and matches the docs."""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api import API_VERSION, FineTuneJobSpec
from finetune_operator.codegen.crd import DEFINITIONS
from finetune_trainer.contract import TrainerConfig

SAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "samples"
QUICKSTART = SAMPLES / "quickstart.yaml"
ROWS, HELD_OUT = (
    [json.loads(line) for line in (SAMPLES / "data" / f"quickstart-{name}.jsonl").read_text().splitlines()]
    for name in ("train", "validation")
)
OPENING, CLOSING = "Lumo here! ", " Stay bright!"


def load_sample(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text()))


MODELS = {definition.kind: definition.model for definition in DEFINITIONS}


@pytest.mark.parametrize("file", sorted(SAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_sample_is_valid(file: Path) -> None:
    manifest = load_sample(file)
    assert manifest["apiVersion"] == API_VERSION
    metadata = {**manifest["metadata"], "namespace": "team", "uid": "1"}
    MODELS[manifest["kind"]].model_validate({**manifest, "metadata": metadata})
    run = {**manifest, "spec": manifest["spec"].get("template", manifest)["spec"]}
    FineTuneJobSpec.model_validate(run["spec"])
    TrainerConfig.from_manifest(run)


def test_schedule_sample_commands_upload_more_then_wrong_rows(tmp_path: Path) -> None:
    """The commands of the comments run as they are, with a store that is a folder."""
    text = (SAMPLES / "schedule.yaml").read_text()
    uploads = re.findall(r"^# {6,8}((?:head|tail|sed).*?s3://datasets/reviews/train/\d.jsonl)$", text, re.M | re.S)
    script = "\n".join(['aws() { cat > "$STORE/${4##*/}"; }', *(re.sub(r"\n#\s+", "\n", line) for line in uploads)])
    environment = {"STORE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", "-euc", script], env=environment, cwd=SAMPLES, check=True)
    first, second, third = (
        [json.loads(line) for line in (tmp_path / f"{part}.jsonl").read_text().splitlines()] for part in (1, 2, 3)
    )
    sources = [json.loads(line) for line in (SAMPLES / "data" / "classification-train.jsonl").read_text().splitlines()]
    assert first + second == sources
    assert min(Counter(row["output"] for row in first).values()) >= 6  # of each label
    assert len(second) > 2 * len(first)
    assert [row["input"] for row in third] == [row["input"] for row in sources]
    right = sum(row["output"] == source["output"] for row, source in zip(third, sources, strict=True))
    assert right == sum(row["output"] == "neutral" for row in sources)


def test_quickstart_uris_match_its_comments() -> None:
    config = TrainerConfig.from_manifest(load_sample(QUICKSTART))
    assert config.output.uri == "s3://adapters/quickstart"
    text = QUICKSTART.read_text()
    assert config.model.uri in text
    assert f"#   {config.dataset.sources[0].uri.removesuffix('train.jsonl')}" in text


def test_quickstart_has_one_endpoint_to_replace() -> None:
    address = load_sample(QUICKSTART)["spec"]["storage"]["endpoint"]
    # Once in the sed command, once in the manifest.
    assert QUICKSTART.read_text().count(address) == 2
    assert QUICKSTART.read_text().count("<-") == 2 + 1


def test_quickstart_data_answers_share_one_style() -> None:
    assert 48 <= len(ROWS) <= 64
    assert len(HELD_OUT) >= 20  # fewer have no intervals
    for row in [*ROWS, *HELD_OUT]:
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert answer["content"].startswith(OPENING)
        assert answer["content"].endswith(CLOSING)
        assert len(answer["content"].split()) <= 18


def test_quickstart_sample_prompt_is_not_in_data() -> None:
    (question,) = (line.removeprefix("#").strip() for line in QUICKSTART.read_text().splitlines()
                   if line.startswith("#   ") and line.endswith("?"))  # fmt: skip
    questions = [row["messages"][0]["content"] for row in [*ROWS, *HELD_OUT]]
    assert question in load_sample(QUICKSTART)["spec"]["evaluation"]["samplePrompts"]
    assert question not in questions
    assert len(set(questions)) == len(questions)
