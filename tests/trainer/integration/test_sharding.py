"""Runs whose ranks share the base model: the same result as with a complete copy in each rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.s3_server import free_port
from tests.support.trainer.trainer_process import TrainerRun, make_rows
from tests.support.trainer.worker_processes import WorkerGroup, make_group_factory, read_adapter

from finetune_trainer.contract import SHARDING_ENV, SUSPEND_AT_STEP_ENV, Reason

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

TRAINING = {
    "maxSteps": None,
    "epochs": 2,
    "batchSize": 2,
    "globalBatchSize": 8,
    "gradientAccumulation": 4,
    "lora": {"rank": 4},
    "learningRate": 2e-3,
}
GRADIENTS_SCRIPT = """
import os
import torch
from finetune_trainer.distributed import collectives
from finetune_trainer.modeling import sharding
collectives.init_process_group(lambda: None)
is_first = os.environ["RANK"] == "0"
model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(2)) for _ in range(3)])
model[0].grad = torch.full((2,), 2.0 if is_first else 4.0)
model[1].grad = None if is_first else torch.full((2,), 4.0)
sharding.average_gradients(model)
assert [weight.grad.tolist() for weight in model[:2]] == [[3, 3], [2, 2]]
assert model[2].grad is None
"""
FAILED_PASS_SCRIPT = """
import os
from contextlib import suppress
from pathlib import Path
import torch
from tests.support.trainer.tiny_model import config
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import loading, sharding
def fail(*_):
    raise RuntimeError("CUDA out of memory")
collectives.init_process_group(lambda: None)
model = loading.load_model(config(), Path(os.environ["MODEL_DIR"]), "transformers").eval()
tokens = torch.ones((1, 4), dtype=torch.int64)
try:
    with torch.no_grad(), collectives.translate_peer_errors(), sharding.keep_in_step(model, lambda: None):
        if os.environ["RANK"] == "0":
            hook = model.get_base_model().model.layers[1].register_forward_pre_hook(fail)
            with suppress(RuntimeError):
                model(input_ids=tokens)
            hook.remove()
            model(input_ids=tokens)
except TrainerError as error:
    os._exit(error.reason.exit_code)
"""
TIED_SCRIPT = """
import os
from pathlib import Path
import torch
from tests.support.trainer.tiny_model import config
from tests.support.trainer.model_families import build_family
from finetune_trainer.modeling import loading
folder = build_family(Path(os.environ["MODEL_DIR"]), "llama", tie_word_embeddings=True)
tokens = torch.arange(8, 16)[None]
logits = []
for sharding in ("none", "full"):
    os.environ["FINETUNE_SHARDING"] = sharding
    model = loading.load_model(config({"precision": "fp32"}), folder, "transformers").eval()
    logits.append(model(input_ids=tokens).logits)
assert type(model.get_base_model()).__name__.startswith("FSDP")
torch.testing.assert_close(*logits)
"""


@pytest.fixture
def make_group(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[..., WorkerGroup]:
    return make_group_factory(s3, tmp_path, forks)


@pytest.fixture
def dataset(s3: S3Server) -> dict[str, Any]:
    """Rows that two ranks cannot share evenly, and rows for the validation of which one rank has more batches."""
    held_out = [{"prompt": f"How far is {n}?", "completion": "Near." if n % 2 else "So far." * 9} for n in range(5)]
    s3.put("s3://data/held-out.jsonl", "".join(json.dumps(row) + "\n" for row in held_out).encode())
    s3.put("s3://data/uneven.jsonl", make_rows(18))
    return {
        "sources": [{"uri": "s3://data/uneven.jsonl"}],
        "validation": {"sources": [{"uri": "s3://data/held-out.jsonl"}]},
    }


def shard(group: WorkerGroup, changes: dict[str, Any]) -> WorkerGroup:
    for pod in group.pods:
        pod.environment |= {SHARDING_ENV: "full"}
        pod.changes = changes
    return group


def read_numbers(run: TrainerRun) -> dict[str, float]:
    names = ("trainLoss", "finalLoss", "steps", "tokens", "supervisedTokens", "baseEvalLoss", "evalLoss", "perplexity")
    metrics = run.read_metrics()
    return {name: metrics[name] for name in names}


def test_sharding_ranks_train_evaluate_and_publish_like_one_process(
    s3: S3Server, make_group: Callable[..., WorkerGroup], dataset: dict[str, Any]
) -> None:
    changes = {"evaluation": {"task": "generation", "samplePrompts": ["How far is 1?"], "bias": {}}}
    plain = make_group("plain", 1, dataset=dataset)
    plain.rank_zero.changes = changes
    assert plain.run(**TRAINING) == [0], plain.logs
    for name, nodes in (("single", 1), ("two", 2)):
        sharded = shard(make_group(name, nodes, dataset=dataset), changes)
        assert sharded.run(**TRAINING) == [0] * nodes, sharded.logs
        assert read_numbers(sharded.rank_zero) == pytest.approx(read_numbers(plain.rank_zero), rel=1e-6, abs=1e-5)
        expected, actual = read_adapter(s3, plain.rank_zero), read_adapter(s3, sharded.rank_zero)
        assert expected.keys() == actual.keys()
        assert max(float((expected[key] - actual[key]).abs().max()) for key in expected) < 1e-4
        assert sharded.rank_zero.read_metrics()["exactMatch"] == plain.rank_zero.read_metrics()["exactMatch"]


def test_sharding_suspended_run_is_resumed_by_one_complete_copy(
    make_group: Callable[..., WorkerGroup], dataset: dict[str, Any]
) -> None:
    sharded = shard(make_group("run", 2, dataset=dataset), {})
    for pod in sharded.pods:
        pod.environment |= {SUSPEND_AT_STEP_ENV: "3"}
    assert sharded.run(**TRAINING) == [Reason.STEP_REACHED.exit_code] * 2, sharded.logs
    resumed, uninterrupted = make_group("resumed", 1, dataset=dataset), make_group("whole", 1, dataset=dataset)
    resumed.rank_zero.output = sharded.rank_zero.output
    assert resumed.run(**TRAINING) == [0], resumed.logs
    assert "resuming from step 3" in resumed.logs
    assert uninterrupted.run(**TRAINING) == [0], uninterrupted.logs
    assert read_numbers(resumed.rank_zero) == pytest.approx(read_numbers(uninterrupted.rank_zero), abs=1e-5, rel=1e-6)


def test_sharding_ranks_train_on_preferences_like_one_process(
    s3: S3Server, make_group: Callable[..., WorkerGroup]
) -> None:
    pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(13)]
    for name, rows in (("pairs", pairs[:8]), ("held-out-pairs", pairs[8:])):
        s3.put(f"s3://data/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    dataset = {
        "sources": [{"uri": "s3://data/pairs.jsonl"}],
        "validation": {"sources": [{"uri": "s3://data/held-out-pairs.jsonl"}]},
    }
    settings = {**TRAINING, "method": "dpo", "globalBatchSize": 4}
    plain, sharded = make_group("plain", 1, dataset=dataset), shard(make_group("two", 2, dataset=dataset), {})
    assert plain.run(**settings) == [0], plain.logs
    assert sharded.run(**settings) == [0, 0], sharded.logs
    for name in ("trainLoss", "finalLoss", "evalLoss", "evalRewardAccuracy"):
        expected = plain.rank_zero.read_metrics()[name]
        assert sharded.rank_zero.read_metrics()[name] == pytest.approx(expected, abs=1e-5), name


def test_sharding_unsupported_settings_end_run_before_download(make_group: Callable[..., WorkerGroup]) -> None:
    group = shard(make_group("unsupported", 1), {"model": {"quantization": "nf4"}, "output": {"merged": False}})
    assert group.run(method="sft", lora={"variant": "dora"}) == [Reason.CONFIG_INVALID.exit_code], group.logs
    assert "compute.sharding full does not support model.quantization nf4 and training.lora.variant dora" in group.logs
    assert "to download" not in group.logs
    for pod in group.pods:
        pod.environment[SHARDING_ENV] = "Full"
    assert group.run() == [Reason.CONFIG_INVALID.exit_code], group.logs
    assert "FINETUNE_SHARDING is 'Full', expected none or full" in group.logs


class TestRanks:
    """Ranks that run a script."""

    def test_average_gradients_weight_unused_by_a_rank_counts_as_zero(self, forks: ForkServer) -> None:
        assert self.run_ranks(forks, GRADIENTS_SCRIPT) == [0, 0]

    def test_keep_in_step_failed_pass_ends_all_ranks(self, forks: ForkServer, model_dir: Path) -> None:
        """The error of a pass is handled in the block, but the other rank still computes that pass."""
        codes = self.run_ranks(forks, FAILED_PASS_SCRIPT, MODEL_DIR=str(model_dir))
        assert codes == [Reason.OUT_OF_MEMORY.exit_code, Reason.PEER_LOST.exit_code]

    def test_load_model_tied_weights_are_sharded_by_one_rank(self, forks: ForkServer, tmp_path: Path) -> None:
        assert forks.wait(forks.start_script(TIED_SCRIPT, {"MODEL_DIR": str(tmp_path)})) == 0

    def run_ranks(self, forks: ForkServer, script: str, **environment: str) -> list[int]:
        """Return the exit codes of two ranks."""
        environment |= {SHARDING_ENV: "full", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [forks.start_script(script, environment | {"RANK": str(rank)}) for rank in range(2)]
        return [forks.wait(rank) for rank in ranks]
