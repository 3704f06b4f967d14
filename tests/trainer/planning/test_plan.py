"""Tests that the estimates of `plan` match a run of the same config."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from tests.matrix.families import build_config
from tests.support.trainer.model_shapes import LLAMA_8B, make_config
from tests.support.trainer.plan_jobs import PlanJobWriter
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, chat, config
from tests.support.trainer.tiny_training import TrainingRequest, train

from finetune_trainer.checkpoints.store import list_files
from finetune_trainer.config.loader import load_manifest
from finetune_trainer.contract import Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.loading import load_model
from finetune_trainer.modeling.model_config import build_meta_model
from finetune_trainer.modeling.unsupported_options import list_unsupported_options
from finetune_trainer.pipeline import run
from finetune_trainer.planning import estimates
from finetune_trainer.planning.model_shape import compute_model_shape
from finetune_trainer.planning.plan import CheckFailedError, RunResources, build_plan, read_resources
from finetune_trainer.planning.plan_text import to_text
from finetune_trainer.planning.weights import count_parameters
from finetune_trainer.run_setup import resolve_run
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server

ROWS = [*(chat("Which lamp?", "The red one. " * count) for count in range(1, 9)), chat("x", "y " * 400)]
AMBIGUOUS_TERMS = [["nurse", "doctor"], ["Nurse", "driver"]]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def job(s3: S3Server, model_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest whose model and data are in the store."""
    writer = PlanJobWriter(s3, tmp_path)
    writer.upload_model(model_dir)
    return writer.write


@pytest.mark.s3
@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
class TestPlanAgainstRun:
    """The plan of a config, and the run of it."""

    def test_plan_config_that_run_does_not_support_is_refused(self, job: Callable[..., Path], tmp_path: Path) -> None:
        tokens = {"rank": 8, "trainableTokens": ["<|im_end|>"]}
        with pytest.raises(TrainerError, match="unsloth supports neither") as caught:
            build_plan(load_manifest(job(ROWS, backend="unsloth", lora=tokens)), tmp_path)
        assert caught.value.reason is Reason.CONFIG_INVALID
        with pytest.raises(TrainerError, match="unsloth supports a single process only"):
            build_plan(load_manifest(job(ROWS, backend="unsloth")), tmp_path, RunResources(world_size=2))
        dora = load_manifest(job(ROWS, lora={"variant": "dora"}))
        with pytest.raises(TrainerError, match=r"compute\.sharding full does not support training\.lora\.variant dora"):
            build_plan(dora, tmp_path, RunResources(is_sharded=True))

    def test_plan_counts_match_run(
        self, job: Callable[..., Path], s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        job_config = load_manifest(job(ROWS, lora={"rank": 8}))
        plan = build_plan(job_config, tmp_path)
        assert not s3.list_keys(f"s3://results/{tmp_path.name}")
        with caplog.at_level(logging.INFO):
            done = run(resolve_run(job_config), tmp_path, OutcomeRecorder(ProgressReporter()))
        assert done.result
        assert re.search("memory: predicted .* for base model and adapter of .* of host memory", caplog.text)
        result = json.loads(s3.get(f"s3://results/{tmp_path.name}/manifest.json"))
        evaluation = json.loads(s3.get(f"s3://results/{tmp_path.name}/evaluation.json"))
        assert "loss" in [finding["check"] for finding in evaluation["preflight"]]
        assert plan.preflight == []
        assert plan.dataset.to_json() == result["dataset"]
        assert plan.dataset.rejected == {"overlength": 1}
        assert (plan.steps, plan.tokens_trained) == (result["metrics"]["steps"], result["metrics"]["tokens"])
        stored = [s3.get(f"s3://results/{key}") for key in s3.list_keys(f"s3://results/{tmp_path.name}/")]
        assert not any(b"canary" in content for content in stored)
        adapter = tmp_path / "adapter_model.safetensors"
        adapter.write_bytes(s3.get(f"s3://results/{tmp_path.name}/{adapter.name}"))
        assert plan.trainable_parameters == count_parameters(tmp_path)
        assert plan.adapter_bytes == pytest.approx(adapter.stat().st_size, rel=0.2)

    @pytest.mark.parametrize(
        "lora",
        [{"rank": 4}, {"variant": "dora"}, {"variant": "rslora"}, {"targetModules": ["q_proj", "down_proj"]}],
        ids=["rank 4", "dora", "rslora", "two targets"],
    )
    def test_plan_trainable_parameters_match_adapter(self, model_dir: Path, lora: dict[str, Any]) -> None:
        job_config = config({"lora": lora})
        trained, _ = load_model(job_config, model_dir, "transformers").get_nb_trainable_parameters()
        assert compute_model_shape(job_config, model_dir).trainable == trained

    @pytest.mark.parametrize(
        ("training", "steps"),
        [
            ({"lora": {"rank": 4}}, 4),
            ({"lora": {"rank": 96}}, 4),
            ({"lora": {"rank": 96}, "optimizer": "adamw8bit"}, 4),
            ({"lora": {"variant": "dora"}}, 4),
            ({"lora": {"targetModules": ["q_proj"]}}, 150),
        ],
        ids=["rank 4", "rank 96", "8 bits", "dora", "long and small"],
    )
    def test_plan_checkpoint_size_matches_saved(
        self, model_dir: Path, tmp_path: Path, training: dict[str, Any], steps: int
    ) -> None:
        batches = {"maxSteps": steps, "batchSize": 1, "gradientAccumulation": 1}
        request = TrainingRequest(batches | training, save_at=steps)
        train(request, model_dir, tmp_path)
        saved = list_files(tmp_path / "trainer" / f"checkpoint-{steps}")
        shape = compute_model_shape(request.config, model_dir)
        planned = estimates.estimate_checkpoint_bytes(request.config, shape, steps)
        assert planned == pytest.approx(sum(path.stat().st_size for path in saved), rel=0.15)

    def test_run_larger_than_host_ends_before_weights_are_downloaded(
        self, job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: FaultyProxy
    ) -> None:
        small = psutil.virtual_memory()._replace(total=100_000)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
        recorder = OutcomeRecorder(ProgressReporter())
        with pytest.raises(
            TrainerError, match=r"needs about .* of host memory .*, but there are 97\.7 KiB; "
        ) as caught:
            run(resolve_run(load_manifest(job(ROWS))), tmp_path, recorder)
        assert caught.value.reason is Reason.OUT_OF_MEMORY
        assert recorder.progress.get_latest().stage is Stage.PREPARING
        assert any(path.endswith("config.json") for path in proxy.read_paths)
        assert not any(path.endswith(".safetensors") for path in proxy.read_paths)

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"model": {"quantization": "nf4"}}, "model.quantization nf4"),
            (
                {"training": {"kernels": "liger"}, "output": {"merged": True}},
                "training.kernels liger and output.merged",
            ),
        ],
        ids=["nf4", "liger and merged"],
    )
    def test_plan_sharded_settings_that_the_run_refuses_are_refused(
        self, job: Callable[..., Path], tmp_path: Path, changes: dict[str, dict[str, Any]], problem: str
    ) -> None:
        manifest = job(ROWS)
        document = json.loads(manifest.read_text())
        for section, fields in {**changes, "compute": {"gpusPerNode": 2, "sharding": "full"}}.items():
            document["spec"][section] = {**document["spec"].get(section, {}), **fields}
        manifest.write_text(json.dumps(document))
        with pytest.raises(TrainerError, match=f"compute.sharding full does not support {problem};"):
            build_plan(load_manifest(manifest), tmp_path, read_resources(manifest))

    @pytest.mark.parametrize(
        ("family", "unsupported"),
        [
            ("llama", set()),
            ("gpt2", {"shards"}),
            ("falcon", {"nf4", "packs", "shards"}),
            ("mixtral", {"nf4"}),
            ("lfm2", {"packs"}),
        ],
    )
    def test_options_that_a_run_refuses_are_unsupported(self, family: str, unsupported: set[str]) -> None:
        ids = {"vocab_size": 400, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        meta_model = build_meta_model(build_config(family, ids))
        assert list_unsupported_options(config({}), meta_model) == unsupported

    @pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
    def test_plan_cross_validation_counts_all_trainings(
        self, job: Callable[..., Path], s3: S3Server, tmp_path: Path, packing: bool
    ) -> None:
        rows = [
            chat(f"What is {word}?", f"{word} " * size) for size, word in enumerate(("ink", "oak", "tin", "fog"), 1)
        ]
        job_config = load_manifest(
            job(rows, crossValidation={"folds": 3}, batchSize=1, gradientAccumulation=1, packing=packing)
        )
        plan = build_plan(job_config, tmp_path)
        recorder = OutcomeRecorder(ProgressReporter())
        assert run(resolve_run(job_config), tmp_path, recorder).reason is Reason.COMPLETED
        progress = recorder.progress.get_latest()
        assert progress.step == progress.total_steps == plan.steps
        assert plan.trainings == 4
        if not packing:  # each row is trained on twice in all trainings but one
            assert (plan.steps, plan.tokens_trained) == (2 * 3 * 4, 2 * 3 * plan.dataset.tokens)
        assert f"{plan.steps} of 4 trainings (3 folds)" in to_text(plan)
        assert ("sequences" if packing else "rows") + " per step" in to_text(plan)

    def test_plan_adapter_with_other_rank_is_refused(
        self, job: Callable[..., Path], s3: S3Server, tmp_path: Path
    ) -> None:
        start = f"s3://models/{tmp_path.name}-adapter"
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 32}
        s3.put(f"{start}/adapter_config.json", json.dumps(settings).encode())
        s3.put(f"{start}/adapter_model.safetensors", b"")
        job_config = load_manifest(job(ROWS))
        job_config = job_config.model_copy(update={"model": job_config.model.model_copy(update={"adapter_uri": start})})
        with pytest.raises(TrainerError, match=r"training.lora.rank is 16, .* is 4") as caught:
            build_plan(job_config, tmp_path)
        assert caught.value.reason is Reason.CONFIG_INVALID

    def test_plan_text_is_readable_table(self, job: Callable[..., Path], model_dir: Path, tmp_path: Path) -> None:
        text, advice = to_text(build_plan(load_manifest(job(ROWS)), tmp_path)).split("\n\n")
        lines = text.splitlines()
        assert "# 16 GB, 24 GB, 40 GB, 80 GB, 141 GB: fits; faster with ~ 1.4 GiB" in advice
        sharded = to_text(build_plan(load_manifest(job(ROWS)), tmp_path, RunResources(2, is_sharded=True)))
        assert "16, of 2 ranks that share the base model" in sharded
        assert yaml.safe_load(advice)["training"]["gradientCheckpointing"] is False
        table = {label.strip(): value.strip() for label, value in (line.split("  ", 1) for line in lines)}
        assert table["rows read"] == "9"
        assert table["rejected: overlength"] == "1"
        assert table["base model"] == f"{count_parameters(model_dir):,} parameters"
        assert table["fits a GPU of"].startswith("~ 16 GB")
        assert re.match("~ load .*, training .*, evaluation .*, export ", table["peak by phase"])
        assert re.match(
            r"at least .*: base model .*, data .*, prepared data .*, checkpoints .*, new adap", table["scratch"]
        )

    def test_plan_counts_test_rows(self, job: Callable[..., Path], tmp_path: Path) -> None:
        (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [ROWS[0], chat("And now?", "The blue one.")])))
        evaluation = {"test": {"sources": [{"uri": f"file://{tmp_path}/test.jsonl"}]}}
        plan = build_plan(load_manifest(job(ROWS, evaluation=evaluation)), tmp_path)
        assert (plan.dataset.rows, plan.dataset.kept, plan.dataset.test) == (11, 7, 2)
        assert plan.dataset.rejected == {"leaked": 1, "overlength": 1}
        assert any(line.split() == ["rows", "for", "the", "test", "2"] for line in to_text(plan).splitlines())

    def test_plan_scratch_volume_too_small_is_refused_after_the_plan(
        self, job: Callable[..., Path], model_dir: Path, tmp_path: Path
    ) -> None:
        job_config = load_manifest(job(ROWS))
        plan = build_plan(job_config, tmp_path, RunResources(scratch_size=2**30))
        assert plan.scratch_parts["base model"] == sum(path.stat().st_size for path in model_dir.iterdir())
        assert plan.scratch_parts["checkpoints"] == 3 * plan.estimated_checkpoint_bytes
        assert plan.scratch_parts["prepared data"] > 0
        with pytest.raises(CheckFailedError, match=r"compute\.scratch\.size is .*; set it to 1Gi or more") as caught:
            build_plan(job_config, tmp_path, RunResources(scratch_size=plan.scratch_bytes))
        assert (caught.value.reason, caught.value.plan) == (Reason.DISK_FULL, plan)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"rows": [{"prompt": "x"}]}, Reason.DATA_INVALID),
            ({"rows": [chat("x", "y " * 400)]}, Reason.DATASET_EMPTY),
            ({"rows": ROWS, "uri": "s3://models/never-uploaded"}, Reason.MODEL_NOT_FOUND),
            ({"rows": ROWS, "lora": {"targetModules": ["nothing"]}}, Reason.CONFIG_INVALID),
            ({"rows": ROWS, "evaluation": {"bias": {"terms": AMBIGUOUS_TERMS}}}, Reason.CONFIG_INVALID),
        ],
        ids=["unreadable row", "nothing left", "no model", "no such target", "a term with two counterparts"],
    )
    def test_plan_fails_with_same_reason_as_run(
        self, job: Callable[..., Path], tmp_path: Path, change: dict[str, Any], reason: Reason
    ) -> None:
        with pytest.raises(TrainerError) as caught:
            build_plan(load_manifest(job(**change)), tmp_path)
        assert caught.value.reason is reason


def test_unknown_template_is_refused_before_any_download(tmp_path: Path) -> None:
    job_config = make_config().model_copy(
        update={"model": make_config().model.model_copy(update={"chat_template_name": "qwen9"})}
    )
    for refuse in (lambda: build_plan(job_config, tmp_path), lambda: resolve_run(job_config)):
        with pytest.raises(TrainerError, match=r"model.chatTemplateName: TRL has no chat template 'qwen9'") as caught:
            refuse()
        assert caught.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize(
    ("content", "expected_message"),
    [
        ((2**60).to_bytes(8, "little"), "claims to be 1152921504606846976 bytes long"),
        (b"\0\0", "claims to be 0 bytes long"),
        ((50).to_bytes(8, "little") + b"{}", "ends within its header"),
        ((4).to_bytes(8, "little") + b"nope", "is not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not a safetensors file: its header is not a JSON object"),
        ((10).to_bytes(8, "little") + b'{"a": [1]}', "a tensor without a shape"),
    ],
    ids=["bomb", "short", "cut", "no JSON", "a list", "no shape"],
)
def test_parameters_invalid_safetensors_is_refused(tmp_path: Path, content: bytes, expected_message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(TrainerError, match=expected_message) as caught:
        count_parameters(tmp_path)
    assert caught.value.reason is Reason.MODEL_INVALID


def test_time_estimate_grows_with_tokens_and_parameters() -> None:
    job_config = make_config(gradientCheckpointing=False)
    once = estimates.estimate_seconds(job_config, LLAMA_8B, 1_000_000)
    assert once["H100"] == pytest.approx(4 * 1e6 * 8.03e9 / (989e12 * 0.35), rel=0.01)
    half = replace(LLAMA_8B, parameters=LLAMA_8B.parameters // 2)
    assert estimates.estimate_seconds(job_config, half, 2_000_000)["H100"] == pytest.approx(once["H100"])
    assert estimates.estimate_seconds(make_config(), LLAMA_8B, 1_000_000)["H100"] == pytest.approx(once["H100"] * 1.5)
