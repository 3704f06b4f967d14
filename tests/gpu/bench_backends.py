"""Compare the two backends on one GPU: the same random model, rows and adapter, each in a process of its own.

    PYTHONPATH=trainer python tests/gpu/bench_backends.py [--json OUT] [--backends transformers unsloth]

Needs no network: the model has the shape of Llama-3.2-1B with random weights, built on the spot. `--rows full` (the
default) makes every row `--length` tokens long, as published numbers do; `--rows mixed` makes them between a sixteenth
of that and all of it, as data is.

MFU counts 4 FLOPs per token and frozen parameter, 6 per trained one, and 6 x layers x width x length for causal
attention, forward and backward; recomputation is not counted, nor is padding. Peak FLOPs are the card's dense bf16
ones.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Progress, TrainerConfig
from finetune_trainer.progress import ProgressReporter

if TYPE_CHECKING:
    import datasets

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
WIDTH, LAYERS, VOCABULARY = 2048, 16, 128_256
_SECONDS = 140


@dataclass(frozen=True)
class Result:
    """One backend's numbers; the first steps, in which kernels are compiled, are not in the pace."""

    backend: str
    tokens_per_second: float
    mfu_percent: float | None
    peak_gib: float
    first_loss: float
    last_loss: float
    trainable: int
    load_seconds: float
    seconds: float


class Recorder(ProgressReporter):
    """Keeps when each step was done, and what it had lost."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, Progress]] = []
        super().__init__()

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        if fields.get("step"):
            self.steps.append((time.monotonic(), self.latest()))


def build_model(folder: Path, small: bool) -> None:
    """Llama-3.2-1B's shape, random, in bf16, with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = ["<|pad|>", "<|eos|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<|pad|>", eos_token="<|eos|>").save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=512 if small else VOCABULARY,
        hidden_size=128 if small else WIDTH,
        intermediate_size=256 if small else 8192,
        num_hidden_layers=2 if small else LAYERS,
        num_attention_heads=2 if small else 32,
        num_key_value_heads=1 if small else 8,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(shape).to(torch.bfloat16)
    model.save_pretrained(folder)


def rows(config: TrainerConfig, count: int, mixed: bool) -> datasets.Dataset:
    """Random tokens, the last three quarters of each row learnt."""
    import datasets

    source, longest = random.Random(0), config.model.max_length
    lengths = [source.randint(longest // 16, longest) if mixed else longest for _ in range(count)]
    ids = [[source.randrange(2, 258) for _ in range(length)] for length in lengths]
    labels = [[-100] * (len(row) // 4) + row[len(row) // 4 :] for row in ids]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})


def run_one(arguments: argparse.Namespace, backend: str) -> Result:
    """Train in this process."""
    from finetune_trainer.contract import DatasetReport
    from finetune_trainer.data.preparing import PreparedData
    from finetune_trainer.models import model
    from finetune_trainer.training import train

    config = settings(arguments)
    model.import_backend(backend)
    started = time.monotonic()
    words = model.load_tokenizer(arguments.model)
    loaded = model.Loaded(model.load_model(config, arguments.model, backend), words, backend)
    load_seconds = time.monotonic() - started
    data = rows(config, arguments.steps * arguments.batch * arguments.accumulation, arguments.rows == "mixed")
    recorder = Recorder()
    count = len(data)
    report = DatasetReport(rows=count, kept=count, rejected={}, tokens=0, supervised_tokens=0, digest="sha256:0")
    prepared, session = PreparedData(dataset=data, report=report), train.Session(recorder)
    metrics = train.train(config, loaded, prepared, session, arguments.model.parent / backend).metrics
    trainable, total = loaded.model.get_nb_trainable_parameters()
    per_second = _pace(recorder, metrics)
    return Result(
        backend=backend,
        tokens_per_second=round(per_second, 1),
        mfu_percent=_mfu(per_second, total - trainable, trainable, arguments.length),
        peak_gib=round(metrics.get("peakMemoryBytes", 0) / 2**30, 2),
        first_loss=recorder.steps[0][1].loss or float("nan"),
        last_loss=recorder.steps[-1][1].loss or float("nan"),
        trainable=trainable,
        load_seconds=round(load_seconds, 1),
        seconds=round(time.monotonic() - started, 1),
    )


def settings(arguments: argparse.Namespace) -> TrainerConfig:
    """The run, in the terms of a FineTuneJob."""
    return TrainerConfig.model_validate(
        {
            "model": {"uri": "s3://bench/model", "maxLength": arguments.length},
            "dataset": {"sources": [{"uri": "s3://bench/rows.jsonl"}]},
            "training": {
                "maxSteps": arguments.steps,
                "batchSize": arguments.batch,
                "gradientAccumulation": arguments.accumulation,
                "gradientCheckpointing": not arguments.no_recompute,
            },
            "output": {"uri": "s3://bench/out"},
        }
    )


def _pace(recorder: Recorder, metrics: dict[str, float]) -> float:
    """Tokens per second of the second half of the steps."""
    half = len(recorder.steps) // 2
    (since, _), (until, _) = recorder.steps[half - 1], recorder.steps[-1]
    return metrics["tokens"] * (len(recorder.steps) - half) / len(recorder.steps) / (until - since)


def _mfu(per_second: float, frozen: int, trainable: int, length: int) -> float | None:
    import torch

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    peak = next((value for card, value in PEAK_TFLOPS.items() if card in name), None)
    flops = 4 * frozen + 6 * trainable + 6 * LAYERS * WIDTH * length
    return None if peak is None else round(100 * per_second * flops / (peak * 1e12), 2)


def run_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Each backend in a process of its own, since Unsloth changes the libraries of the one that imports it."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        build_model(folder, arguments.small)
        for backend in arguments.backends:
            out = Path(scratch) / f"{backend}.json"
            own = [*sys.argv[1:], "--one", backend, "--model", str(folder), "--json", str(out)]
            environment = {**os.environ, "FINETUNE_SCRATCH": scratch, "HF_HUB_OFFLINE": "1"}
            try:
                subprocess.run([sys.executable, __file__, *own], env=environment, check=True, timeout=_SECONDS)
                results.append(json.loads(out.read_text()))
            except subprocess.SubprocessError as error:
                results.append({"backend": backend, "error": str(error)[-300:]})
    return results


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["transformers", "unsloth"])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rows", choices=["full", "mixed"], default="full")
    parser.add_argument("--no-recompute", action="store_true", help="keep activations instead of recomputing them")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script without a GPU")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    found = asdict(run_one(arguments, arguments.one)) if arguments.one else run_all(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    if not arguments.one:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
