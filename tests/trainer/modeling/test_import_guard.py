"""Modules that training on text does not need are not imported, but can be imported on demand. The garbage collector is
paused during imports, and the installed distributions are listed once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.support.trainer.tiny_model import QUIET_ENV, TRAINING_TIMEOUT

RUN_SCRIPT = """
import gc, importlib.metadata, sys, warnings
warnings.simplefilter("ignore")
from finetune_trainer.modeling.backends import import_backend
calls, list_distributions = [], importlib.metadata.packages_distributions
importlib.metadata.packages_distributions = lambda: calls.append("listed") or list_distributions()
gc.callbacks.append(lambda phase, info: calls.append(f"collection {phase}"))
import_backend("transformers", sys.argv[1])
gc.callbacks.clear()
print(*calls, gc.isenabled(), gc.get_freeze_count() > 100_000)
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTTrainer
shape = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
get_peft_model(LlamaForCausalLM(shape), LoraConfig(target_modules="all-linear"))
optional = {"aiohttp", "bitsandbytes", "mlflow", "scipy", "torchao", "torchvision", "wandb"}
print(*sorted(optional.intersection(sys.modules)))
import aiohttp, datasketch, scipy
"""


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
@pytest.mark.parametrize(("quantization", "loaded"), [("none", []), ("int8", ["bitsandbytes"])])
def test_import_guard_loads_needed_packages_only_without_collections(quantization: str, loaded: list[str]) -> None:
    line = [sys.executable, "-c", RUN_SCRIPT, quantization]
    done = subprocess.run(line, env={**os.environ, **QUIET_ENV}, check=True, capture_output=True, text=True)
    imported, packages = done.stdout.splitlines()
    assert imported == "listed True True"
    assert packages.split() == loaded
