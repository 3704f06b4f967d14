"""Manifests that are published beside a result: they name what the run has, and are valid YAML for hostile names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.serving.samples import CHAMPION, FOLDER, RESULT, render_samples
from tests.support.trainer.run_records import ADAPTER_FACTS, COMMIT, CONFIG, make_full_evaluation, make_manifest

from finetune_trainer.contract import Servable, TrainerConfig
from finetune_trainer.reporting.serving_manifests import (
    build_deployment,
    build_llm_inference_service,
    describe_adapter_to_serve,
    render_vllm,
)
from finetune_trainer.reporting.writer import write_reports

SERVABLE = Servable(vllm="Yes, with --max-lora-rank 64", llama_cpp="Yes, as GGUF", peft="Yes")


def list_arguments(deployment: dict[str, Any], container: str) -> list[str]:
    pod = deployment["spec"]["template"]["spec"]
    found = {each["name"]: each for each in (*pod["initContainers"], *pod["containers"])}[container]
    return [*found["command"], *found["args"]]


def make_config(**changes: Any) -> dict[str, Any]:
    return TrainerConfig.model_validate({**CONFIG, **changes}).to_json()


def test_manifest_has_the_values_of_the_run() -> None:
    config = make_config(storage={"endpoint": "https://s3.example", "region": "eu-west-1"})
    adapter = describe_adapter_to_serve(make_manifest(config=config), ADAPTER_FACTS, "registry/trainer:1")
    deployment = build_deployment(adapter)
    assert deployment["metadata"]["name"] == "parcel-bot"
    assert list_arguments(deployment, "adapter") == [
        "finetune-trainer",
        "sync-alias",
        "s3://results/team/bot/",
        "/adapters",
        "--once",
        "--endpoint=https://s3.example",
    ]
    served = list_arguments(deployment, "vllm")
    assert served[:4] == ["vllm", "serve", "org/base-1b", f"--revision={COMMIT}"]
    assert {"--max-lora-rank=8", "--lora-modules=parcel-bot=/adapters/current"} <= set(served)
    assert [each["name"] for each in deployment["spec"]["template"]["spec"]["containers"]] == ["vllm"]
    assert {"name": "AWS_REGION", "value": "eu-west-1"} in deployment["spec"]["template"]["spec"]["initContainers"][0][
        "env"
    ]


def test_manifest_of_an_alias_reloads_the_server_under_the_same_name() -> None:
    deployment = build_deployment(CHAMPION)
    arguments = list_arguments(deployment, "sync")
    assert {"--vllm-url=http://127.0.0.1:8000", "--lora-name=support-bot"} <= set(arguments)
    assert "--once" not in arguments
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "true"} in container["env"]


def test_manifest_without_a_public_base_name_has_a_placeholder() -> None:
    config = make_config(model={"uri": "s3://models/base/", "maxLength": 64})
    adapter = describe_adapter_to_serve(make_manifest(config=config), ADAPTER_FACTS, "")
    assert adapter.base_model == "ORGANIZATION/BASE-MODEL"
    assert adapter.image == "registry.example/finetune-task:0.1.0"
    assert "ORGANIZATION/BASE-MODEL: the base model" in render_vllm(adapter)


@pytest.mark.parametrize(
    ("job", "name"),
    [
        ("team/1-bot", "adapter-1-bot"),
        ("team/a.b.c", "a-b-c"),
        ("team/" + "x" * 253, "x" * 50),
        ("bot: {}\n# x", "bot-x"),
        ("--", "adapter"),
    ],
)
def test_manifest_name_is_that_of_a_service(job: str, name: str) -> None:
    adapter = describe_adapter_to_serve(make_manifest(job=job), ADAPTER_FACTS, "")
    deployment, service = yaml.safe_load_all(render_vllm(adapter))
    assert deployment["metadata"]["name"] == service["metadata"]["name"] == name


def test_manifest_of_kserve_has_the_fields_of_its_samples() -> None:
    model = build_llm_inference_service(RESULT)["spec"]["model"]
    assert model == {
        "uri": "hf://Qwen/Qwen3-8B",
        "name": "Qwen/Qwen3-8B",
        "lora": {"adapters": [{"name": "support-bot", "uri": "s3://adapters/support-bot"}], "maxRank": 16},
    }


@pytest.mark.parametrize("name", ["vllm.yaml", "vllm-champion.yaml", "kserve.yaml"])
def test_sample_manifest_is_the_rendered_one(name: str) -> None:
    assert (FOLDER / name).read_text() == render_samples()[name], "run python -m tests.serving.samples"


@pytest.mark.parametrize(("vllm", "is_written"), [(SERVABLE.vllm, True), ("No: vLLM does not load DoRA.", False)])
def test_manifests_are_written_for_adapters_that_vllm_loads(tmp_path: Path, vllm: str, is_written: bool) -> None:
    servable = SERVABLE.model_copy(update={"vllm": vllm})
    write_reports(tmp_path, make_manifest(servable=servable), make_full_evaluation(), ADAPTER_FACTS)
    names = {path.name for path in tmp_path.iterdir()}
    assert ({"serve-vllm.yaml", "serve-kserve.yaml"} <= names) is is_written
    assert vllm in (tmp_path / "report.html").read_text()
    assert f"- vLLM: {vllm}" in (tmp_path / "README.md").read_text().replace("\\", "")
