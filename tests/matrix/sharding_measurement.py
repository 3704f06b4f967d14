"""Measures for which families two ranks that share the base model compute what one process computes.

As a program, it is one of the ranks: `python -m tests.matrix.sharding_measurement FOLDER FAMILY …`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from tests.matrix.measurement import shorten
from tests.support.trainer.model_families import build_family
from tests.support.trainer.s3_server import free_port
from tests.support.trainer.tiny_model import config

from finetune_trainer.contract import SHARDING_ENV
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import loading, sharding
from finetune_trainer.modeling.model_config import build_meta_model, load_model_config
from finetune_trainer.modeling.support_matrix import NO_PREFIX, VARIANT_SEPARATOR, YES

_RANKS = 2
_ROWS, _TOKENS, _PROMPT_TOKENS, _NEW_TOKENS = 2, 24, 6, 4
_FIRST_WORD = 8
"""Tokens before it are special: the embedding of padding can be zero, for which norms have no finite gradient."""
_LOSS_TOLERANCE = 1e-5
"""Largest difference of the loss, relative to it."""
_GRADIENT_TOLERANCE = 1e-3
"""Norm of the difference of the gradients, relative to their norm."""
_GROUP_TIMEOUT_SECONDS = 1200
_ERRORS = (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)

Numbers = dict[str, Any]
"""`loss`, `gradients` of the adapter as one vector, and the `answer`, or the `problem`."""


def measure_sharding(families: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each family with its cell."""
    with TemporaryDirectory(prefix="sharding-") as name:
        folder, plain = Path(name), {}
        for family in families:
            build_family(_get_path(folder, family), family)
            plain[family] = _measure(folder, family)
        _run_ranks(folder, list(plain))
        for family, expected in plain.items():
            path = _get_path(folder, family).with_suffix(".pt")
            measured = torch.load(path) if path.is_file() else {"problem": "the ranks did not end"}
            yield family, _judge(expected, measured)


def _get_path(folder: Path, family: str) -> Path:
    return folder / family.replace(VARIANT_SEPARATOR, "-")


def _judge(expected: Numbers, measured: Numbers) -> str:
    problem = measured.get("problem") or expected.get("problem")
    if problem:
        return NO_PREFIX + shorten(problem)
    loss, sharded_loss = expected["loss"], measured["loss"]
    distance = float((measured["gradients"] - expected["gradients"]).norm() / expected["gradients"].norm())
    if abs(sharded_loss - loss) <= _LOSS_TOLERANCE * abs(loss) and distance <= _GRADIENT_TOLERANCE:
        is_same_answer = measured["answer"] == expected["answer"]
        return YES if is_same_answer else f"{NO_PREFIX}the answer of {_RANKS} ranks differs from that of one process"
    return (
        f"{NO_PREFIX}the loss of {_RANKS} ranks that share the base model is {sharded_loss:.6g}, that of one process "
        f"{loss:.6g}; the gradient differs by {distance:.2%}"
    )


def _run_ranks(folder: Path, families: list[str]) -> None:
    environment = {
        **os.environ,
        SHARDING_ENV: "full",
        "WORLD_SIZE": str(_RANKS),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": str(_RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, "-m", "tests.matrix.sharding_measurement", str(folder), *families]
    ranks = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(_RANKS)]
    try:
        for rank in ranks:
            rank.wait(_GROUP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        for rank in ranks:
            rank.kill()


def _measure(folder: Path, family: str) -> Numbers:
    try:
        return _compute(_get_path(folder, family))
    except TrainerError as error:
        return {"problem": error.message}
    except _ERRORS as error:
        return {"problem": f"{type(error).__name__}: {error}"}


def _compute(model_dir: Path) -> Numbers:
    """Compute loss and gradients of this rank's rows and average them, and let rank 0 generate an answer."""
    is_sharded = topology.is_sharded()
    if is_sharded:
        sharding.check_layers(build_meta_model(load_model_config(model_dir)))
    model = loading.load_model(config({"precision": "fp32"}), model_dir, "transformers").eval()
    _fill_adapter(model)
    settings = model.config.get_text_config()
    settings.output_router_logits = False  # the loss of routers is not a mean over rows, and the trainer disables it
    words = settings.vocab_size - _FIRST_WORD
    rows = _FIRST_WORD + torch.arange(_ROWS * _TOKENS).reshape(_ROWS, _TOKENS) * 7919 % words
    own_rows = rows[topology.rank() :: topology.world_size()]
    loss = model(input_ids=own_rows, attention_mask=torch.ones_like(own_rows), labels=own_rows).loss
    loss.backward()
    if is_sharded:
        sharding.average_gradients(model)
    mean_loss = float(collectives.all_reduce_sum(loss.detach())) / topology.world_size()
    gradients = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    return {"loss": mean_loss, "gradients": gradients, "answer": _generate(model, rows[:1, :_PROMPT_TOKENS])}


def _fill_adapter(model: torch.nn.Module) -> None:
    """Replace the zeros of the B matrices, so that all weights of the adapter have a gradient."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.copy_(torch.linspace(-0.1, 0.1, weight.numel()).reshape(weight.shape))


def _generate(model: PeftModel, prompt: torch.Tensor) -> list[int]:
    length = {"max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS}
    with torch.no_grad(), sharding.keep_in_step(model, lambda: None):
        if not topology.is_rank_zero():
            return []
        output = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, use_cache=True, **length
        )
        answer: list[int] = output[0].tolist()
        return answer


def _run_rank() -> None:
    """Measure the families, and let rank 0 write the numbers of each."""
    collectives.init_process_group(lambda: None)
    folder = Path(sys.argv[1])
    for family in sys.argv[2:]:
        numbers = _measure(folder, family)
        if topology.is_rank_zero():
            torch.save(numbers, _get_path(folder, family).with_suffix(".pt"))


if __name__ == "__main__":
    _run_rank()
