"""Training with TRL or Unsloth directly, to compare the trainer with. It imports nothing of this repository.

As a script it trains on the CPU, once per file of rows (JSON Lines of `messages`, or of `input_ids` and `labels`), and
writes a JSON list of the losses of the steps of each file:

    python tests/support/trainer/plain_trl_training.py trl MODEL OUT ROWS... [--options '{"steps": 8}']
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training. Those that are not here have the defaults of TRL.

    With `gpu` the model is trained in bf16 on the first GPU, otherwise in float32 on the CPU.
    """

    steps: int = 4
    batch_size: int = 4
    gradient_accumulation: int = 1
    learning_rate: float = 1e-2
    warmup_steps: int = 0
    weight_decay: float = 0.01
    seed: int = 42
    max_length: int = 256
    rank: int = 16
    alpha: float = 32
    nf4: bool = False
    gradient_checkpointing: bool = False
    gpu: bool = False


@dataclass
class TrainingResult:
    """The trained model and the measurements of a training.

    `times` and `cpu_times` are the monotonic clock and the CPU seconds of the process after each step, and `peak` is
    the peak of the reserved GPU memory in bytes (0 on a CPU).
    """

    model: Any
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    cpu_times: list[float] = field(default_factory=list)
    peak: int = 0


def load_with_trl(model_dir: Path, options: TrainingOptions) -> tuple[Any, Any]:
    """Load model and tokenizer with transformers, and add a LoRA adapter with PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed

    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=torch.bfloat16 if options.gpu else torch.float32,
        device_map={"": 0} if options.gpu else None,
        quantization_config=BitsAndBytesConfig(**nf4) if options.nf4 else None,
    )
    set_seed(options.seed)
    lora = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora), AutoTokenizer.from_pretrained(model_dir)


def load_with_unsloth(model_dir: Path, options: TrainingOptions) -> tuple[Any, Any]:
    """Load model and tokenizer, and add a LoRA adapter, with Unsloth."""
    from unsloth import FastLanguageModel  # must be imported before torch

    import torch  # isort: skip

    recompute = "unsloth" if options.gradient_checkpointing else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(model_dir),
        max_seq_length=options.max_length,
        dtype=torch.bfloat16 if options.gpu else torch.float32,  # the default is bf16 on CPUs that support it
        load_in_4bit=options.nf4,
        use_gradient_checkpointing=recompute,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=TARGET_MODULES,
        use_gradient_checkpointing=recompute,
        random_state=options.seed,
    )
    return model, tokenizer


def read_rows(path: Path, cache_dir: Path) -> datasets.Dataset:
    """Read a JSON Lines file."""
    from datasets import load_dataset

    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache_dir))


def train(loaded: tuple[Any, Any], rows: datasets.Dataset, folder: Path, options: TrainingOptions) -> TrainingResult:
    """Train a loaded model and tokenizer with SFTTrainer, and print each step.

    With a column `completion_mask`, only the tokens with a 1 in it are supervised.
    """
    import torch
    from transformers import TrainerCallback, TrainerState
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = loaded
    result = TrainingResult(model)

    class StepRecorder(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
        def on_log(self, _: object, state: TrainerState, __: object, logs: dict[str, float], **___: object) -> None:
            if "loss" in logs:
                result.times.append(time.monotonic())
                result.cpu_times.append(time.process_time())
                result.losses.append(logs["loss"])
                print(f"step {state.global_step}/{options.steps}")

    arguments = SFTConfig(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        gradient_checkpointing=options.gradient_checkpointing,
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        seed=options.seed,
        max_length=options.max_length,
        completion_only_loss=True if "completion_mask" in rows.column_names else None,
        bf16=options.gpu,
        use_cpu=not options.gpu,
        dataloader_pin_memory=options.gpu,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, args=arguments, train_dataset=rows, callbacks=[StepRecorder()]
    )
    if options.gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    if options.gpu:
        result.peak = torch.cuda.max_memory_reserved()
    return result


def train_on_preferences(
    method: str, model_dir: Path, adapter_dir: Path, rows: dict[str, Any], options: TrainingOptions
) -> list[float]:
    """Continue an adapter with DPOTrainer or KTOTrainer on the CPU, and return the loss of each step.

    The rows are columns of token IDs, as TRL prepares them, in the order of training for `kto`.
    """
    import datasets
    import trl
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer_class: Any = trl.DPOTrainer if method == "dpo" else trl.KTOTrainer
    config_class: Any = trl.DPOConfig if method == "dpo" else trl.KTOConfig
    prepare = {"_prepare_dataset": lambda _, dataset, *__, **___: dataset}  # the rows are tokenized
    trainer = type("TokenizedTrainer", (trainer_class,), prepare)(
        model=PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(model_dir), adapter_dir, is_trainable=True
        ),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        args=config_class(**_build_preference_arguments(method, adapter_dir.parent / "plain", options)),
        train_dataset=datasets.Dataset.from_dict(rows),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _build_preference_arguments(method: str, folder: Path, options: TrainingOptions) -> dict[str, Any]:
    order = {"train_sampling_strategy": "sequential"} if method == "kto" else {}
    return order | {
        "output_dir": str(folder),
        "per_device_train_batch_size": options.batch_size,
        "gradient_checkpointing": options.gradient_checkpointing,
        "max_steps": options.steps,
        "learning_rate": options.learning_rate,
        "weight_decay": options.weight_decay,
        "seed": options.seed,
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def download_buckets(endpoint: str, buckets: list[str], folder: Path) -> None:
    """Download all objects of the buckets with boto3, one by one, to a folder per bucket."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    for bucket in buckets:
        for entry in client.list_objects_v2(Bucket=bucket)["Contents"]:
            path = folder / bucket / entry["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, entry["Key"], str(path))


def main() -> None:
    """Train on each file, and write the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=["trl", "unsloth"])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--options", type=json.loads, default={}, help="fields of TrainingOptions, as JSON")
    parser.add_argument(
        "--download",
        nargs="+",
        metavar=("ENDPOINT", "BUCKET"),
        help="before training, download S3 buckets, each to a folder of its name next to OUT",
    )
    arguments = parser.parse_args()
    folder, options = arguments.out.parent, TrainingOptions(**arguments.options)
    if arguments.download:
        endpoint, *buckets = arguments.download
        download_buckets(endpoint, buckets, folder)
    load = load_with_unsloth if arguments.library == "unsloth" else load_with_trl
    losses = []
    for path in arguments.rows:
        loaded = load(arguments.model, options)
        losses.append(train(loaded, read_rows(path, folder / "cache"), folder, options).losses)
    arguments.out.write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
