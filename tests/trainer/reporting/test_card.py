"""The model card, as the hub and as readers see it."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from tests.support.trainer import hostile_texts, run_records

from finetune_trainer.records.adapter import AdapterInfo
from finetune_trainer.records.evaluation import Estimate, EvaluationReport, Measure
from finetune_trainer.records.manifest import ModelRecord
from finetune_trainer.reporting.card import render_card

EVALUATIONS = {"full": run_records.make_full_evaluation(), "minimal": run_records.make_minimal_evaluation()}


def parse_card(text: str, caplog: pytest.LogCaptureFixture) -> ModelCard:
    with caplog.at_level(logging.WARNING):
        card = ModelCard(text)
    assert not caplog.records
    return card


@pytest.mark.parametrize("evaluation", EVALUATIONS.values(), ids=EVALUATIONS)
def test_card_metadata_is_parsed_by_hub(evaluation: EvaluationReport, caplog: pytest.LogCaptureFixture) -> None:
    data = parse_card(render_card(run_records.make_manifest(), evaluation, run_records.ADAPTER_FACTS), caplog).data
    assert (data.base_model, data.library_name) == ("org/base-1b", "peft")
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert data.tags == ["lora", "sft", "finetune-operator"]
    results = [(metric.metric_type, metric.metric_value) for metric in data.eval_results or []]
    assert results == [
        (name, measure.tuned.value)
        for name, measure in zip(("loss", "perplexity", "accuracy", "f1", "bleu"), evaluation.measures, strict=False)
    ]


def test_card_metrics_have_names_of_the_hub(caplog: pytest.LogCaptureFixture) -> None:
    names = {"exactMatch": "exact_match", "rougeL": "rouge", "chrf": "chrf"}
    measures = [run_records.make_measure(name, 0.1, 0.2, 0.01) for name in names]
    evaluation = run_records.make_minimal_evaluation().model_copy(update={"measures": measures})
    text = render_card(run_records.make_manifest(), evaluation, run_records.ADAPTER_FACTS)
    data = parse_card(text, caplog).data
    assert [result.metric_type for result in data.eval_results or []] == [*names.values()]
    assert data.metrics == sorted(names.values())


def test_card_test_data_has_a_section_and_results_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    measures = [run_records.make_measure("testMacroF1", 0.1, 0.2, 0.01)]
    evaluation = run_records.make_full_evaluation().model_copy(update={"test_measures": measures})
    text = render_card(run_records.make_manifest(), evaluation, run_records.ADAPTER_FACTS)
    results = parse_card(text, caplog).data.eval_results or []
    (result,) = (result for result in results if result.dataset_name == "test rows of the run")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("f1", "Test macro F1", 0.2)
    assert len(results) == len(evaluation.measures) + 1
    section = text.partition("### Test data")[2].partition("## Overfitting")[0]
    assert "Better: Test macro F1. These rows were measured once, after the training." in section
    assert "| Test macro F1 (higher is better) | 0.100 (0.090 to 0.110) | 0.200" in section


EXPECTED_TEXTS = {
    "base": f"Base model: `hf://org/base-1b`, `{run_records.COMMIT}`",
    "adapter": "rank 8, alpha 16, dropout 0, on k_proj, q_proj, v_proj; 1,048,576 trained parameters, ",
    "training": "3 epochs, 2 x 4 rows per step, learning rate 2e-05 (linear), loss on completion, bf16, seed 11",
    "loading": 'PeftModel.from_pretrained(base, "PATH_OF_THIS_FOLDER")',
    "limits": "Restrictions on the use of the base model also apply to the adapter.",
    "measure": "| Accuracy (higher is better) | 0.610 (0.570 to 0.650) | 0.830 (0.790 to 0.870) | +0.220 (+0.180 to",
    "overfitting": "**Overfitted.** The validation loss rose",
    "folds": "Validation loss 1.450 ± 0.050",
    "gate": "| bleu at least 30 | 24.60 | no |",
    "bias": "| gender | swap | 0.110 (0.090 to 0.130) | 0.200 (0.180 to 0.220) | +0.090 (+0.060 to +0.120) | worse |",
    "group": "| gender | male | 930 |",
    "preflight warning": "- **1 warning before the training.** 3 of 10,423 rows: the chat template removes words",
    "missing": "**Not measured, or only in part:** rougeL: the task is classification",
    "rejected": "| duplicate | 310 | exact duplicates of earlier rows |",
    "total": "| **rows read** | **12,000** |",
    "sensitive": "email 44, phone 3; 44 places redacted",
    "digest": f"`sha256:{'d' * 64}`",
    "input": f"`s3://data/support/a.jsonl` `sha256:{'b' * 64}`",
    "energy": "| Energy of the GPUs | 1.53 kWh, by the counters of 2 GPUs (NVML) |",
    "version": "| torch | 2.14.1 |",
    "sample": "```text\nWhere is my parcel? Order 4711.\n```",
}


@pytest.mark.parametrize("text", EXPECTED_TEXTS.values(), ids=EXPECTED_TEXTS)
def test_card_contains_each_fact(text: str) -> None:
    assert text in render_card(
        run_records.make_manifest(), run_records.make_full_evaluation(), run_records.ADAPTER_FACTS
    )


def test_card_passed_preflight_checks_are_left_out() -> None:
    text = render_card(run_records.make_manifest(), run_records.make_full_evaluation(), run_records.ADAPTER_FACTS)
    assert "the trainer's loss" not in text


def test_card_missing_results_are_stated() -> None:
    text = render_card(run_records.make_manifest(), run_records.make_minimal_evaluation(), run_records.ADAPTER_FACTS)
    assert "**Not compared with the base model.** There are no validation rows." in text
    assert all(
        sentence in text for sentence in ("Overfitting not measured.", "Bias not measured.", "No gate configured.")
    )


def count_markdown_tokens(text: str) -> Counter[str]:
    """Count the Markdown elements of the card, without texts."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text.split("\n---\n", 1)[1])
    every = [inner for token in tokens for inner in [token, *(token.children or [])]]
    return Counter(token.type for token in every if token.type not in ("text", "softbreak", "text_special"))


@pytest.mark.parametrize("text", hostile_texts.HOSTILE_TEXTS.values(), ids=hostile_texts.HOSTILE_TEXTS)
def test_card_hostile_text_keeps_structure(text: str, caplog: pytest.LogCaptureFixture) -> None:
    written = render_card(
        hostile_texts.hostile_manifest(text), hostile_texts.hostile_evaluation(text), run_records.ADAPTER_FACTS
    )
    written.encode()
    assert len(written) < 60_000
    assert parse_card(written, caplog).data.base_model == "org/base-1b"
    assert count_markdown_tokens(written) == count_markdown_tokens(
        render_card(
            hostile_texts.hostile_manifest("x"), hostile_texts.hostile_evaluation("x"), run_records.ADAPTER_FACTS
        )
    )


BASE_MODEL_NAMES = {
    "place": "s3://models/a b/c",
    "number": "1.0",
    "yaml": "a: [b, {c: d}] # e",
    "quotes": "'\"' - |\\",
    "end of front matter": "a\n---\n# b",
}


@pytest.mark.parametrize("name", BASE_MODEL_NAMES.values(), ids=BASE_MODEL_NAMES)
def test_card_base_model_name_is_escaped(name: str, caplog: pytest.LogCaptureFixture) -> None:
    facts = AdapterInfo(name, 1, 2, "fp32", ("q_proj",), "supervised fine-tuning")
    data = parse_card(render_card(run_records.make_manifest(), run_records.make_full_evaluation(), facts), caplog).data
    assert data.base_model is None  # the hub rejects names that are not those of a repository
    assert len(data.eval_results) == 5


def render_with_output(base_name: str = "org/base-1b", **settings: Any) -> str:
    config = {**run_records.CONFIG, **settings}
    facts = dataclasses.replace(run_records.ADAPTER_FACTS, base_name=base_name)
    return render_card(run_records.make_manifest(config=config), run_records.make_full_evaluation(), facts)


@pytest.mark.parametrize(
    ("training", "texts"),
    [
        (
            {"globalBatchSize": 64, "optimizer": "adamw8bit", "kernels": "liger", "batching": "paddingFree"},
            ["64 rows per step on all devices", "| Optimizer | adamw8bit |", "kernels of Liger", ", without padding"],
        ),
        (
            {"packing": True, "warmupSteps": 9, "scheduler": "cosine", "minLearningRateRatio": 0.1},
            [
                "2 x 4 sequences per step",
                "| Sequences per step |",
                "cosine, warm-up 9 steps, at least 0.1 of it",
                "pack",
            ],
        ),
    ],
    ids=["padding-free", "packed"],
)
def test_card_settings_show_how_batches_and_steps_are_made(training: dict[str, Any], texts: list[str]) -> None:
    card = render_with_output(training=run_records.CONFIG["training"] | training)
    assert [text for text in texts if text not in card] == []


def test_card_metadata_has_license_language_and_datasets(caplog: pytest.LogCaptureFixture) -> None:
    output = {"uri": "s3://results/bot", "license": "apache-2.0", "languages": ["en", "de"]}
    dataset = {"sources": [{"uri": "hf://datasets/org/chats@v1/*.jsonl"}, {"uri": "s3://data/own.jsonl"}]}
    data = parse_card(render_with_output(output=output, dataset=dataset), caplog).data
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["en", "de"], ["org/chats"])


def test_card_uri_as_base_model_is_not_in_metadata(caplog: pytest.LogCaptureFixture) -> None:
    text = render_with_output(base_name="s3://models/base")
    data = parse_card(text, caplog).data.to_dict()
    assert not {"base_model", "base_model_relation"} & set(data)
    assert 'from_pretrained("PATH_OF_THE_BASE_MODEL")' in text


HUB_LICENSE = {"license": "other", "license_name": "org-community", "license_link": "https://example.org/license"}


@pytest.mark.parametrize(("configured", "expected"), [(None, HUB_LICENSE), ("mit", {"license": "mit"})])
def test_card_license_defaults_to_that_of_base_model(
    configured: str | None, expected: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    config = {**run_records.CONFIG, "output": {"uri": "s3://results/bot", "license": configured}}
    model = ModelRecord(uri="hf://org/base-1b", revision=run_records.COMMIT, license_fields=HUB_LICENSE)
    text = render_card(
        run_records.make_manifest(config=config, model=model),
        run_records.make_minimal_evaluation(),
        run_records.ADAPTER_FACTS,
    )
    data = parse_card(text, caplog).data.to_dict()
    assert {name: value for name, value in data.items() if name.startswith("license")} == expected


def test_card_usage_pins_revision_of_hub_model_alone() -> None:
    pinned = render_with_output()
    assert f'from_pretrained("org/base-1b", revision="{run_records.COMMIT}")' in pinned
    renamed = render_with_output(base_name="acme/other")
    assert 'from_pretrained("acme/other")' in renamed
    assert "vllm serve acme/other --enable-lora" in renamed


def test_card_few_rows_have_p_value_of_change() -> None:
    change = Estimate(value=-1.2, samples=12)
    measure = Measure(name="evalLoss", higher_is_better=False, base=change, tuned=change, change=change, p_value=0.0001)
    evaluation = run_records.make_minimal_evaluation().model_copy(update={"measures": [measure]})
    text = render_card(run_records.make_manifest(), evaluation, run_records.ADAPTER_FACTS)
    assert "| \u22121.200, p &lt; 0.001 | 12 |" in text
    assert "With fewer than 20 rows, p is that of an exact test of the change." in text


VLLM_RANKS = {8: "--max-lora-rank 8 ", 9: "--max-lora-rank 16 ", 200: "--max-lora-rank 256 "}


@pytest.mark.parametrize(("rank", "expected"), VLLM_RANKS.items())
def test_card_has_command_for_vllm_with_fitting_rank(rank: int, expected: str) -> None:
    text = render_with_output(training={"epochs": 1, "lora": {"rank": rank}})
    assert f"vllm serve org/base-1b --revision {run_records.COMMIT} --enable-lora" in text
    assert "--lora-modules parcel-bot=PATH_OF_THIS_FOLDER \\\n  --tokenizer PATH_OF_THIS_FOLDER" in text
    assert expected in text


def test_card_gguf_files_are_named_if_requested() -> None:
    output = run_records.CONFIG["output"]
    assert "GGUF files for llama.cpp and Ollama are in the folder `gguf`" in render_with_output(
        output={**output, "gguf": "q8_0"}
    )
    assert "folder `gguf`" not in render_with_output()


def test_card_dora_adapter_has_no_command_for_vllm() -> None:
    text = render_with_output(training={"epochs": 1, "lora": {"variant": "dora"}})
    assert "vllm serve" not in text
    assert "vLLM does not load this kind of adapter" in text
