"""Plain scripts that train on the same tokens with TRL or Unsloth directly, to compare the trainer with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.contract import TrainerConfig

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class ScriptResult:
    """Time in seconds and loss of each step, the trained model, and the peak GPU memory in bytes."""

    times: list[float]
    losses: list[float]
    model: Any
    peak: int


def load_with_trl(config: TrainerConfig, model_dir: Path) -> tuple[Any, Any]:
    """Load model and tokenizer with transformers, and add a LoRA adapter with PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=torch.bfloat16,
        device_map={"": 0},
        quantization_config=nf4 if config.model.quantization == "nf4" else None,
    )
    set_seed(config.training.seed)
    lora = config.training.lora
    adapter = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, adapter), AutoTokenizer.from_pretrained(model_dir)


def load_with_unsloth(config: TrainerConfig, model_dir: Path) -> tuple[Any, Any]:
    """Load model and tokenizer, and add a LoRA adapter, with Unsloth."""
    import torch
    from unsloth import FastLanguageModel

    recompute = "unsloth" if config.training.gradient_checkpointing else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(model_dir),
        max_seq_length=config.model.max_length,
        dtype=torch.bfloat16,
        load_in_4bit=config.model.quantization == "nf4",
        use_gradient_checkpointing=recompute,
    )
    lora, seed = config.training.lora, config.training.seed
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=TARGET_MODULES,
        use_gradient_checkpointing=recompute,
        random_state=seed,
    )
    return model, tokenizer


def train(config: TrainerConfig, loaded: tuple[Any, Any], rows: datasets.Dataset, folder: Path) -> ScriptResult:
    """Train with SFTTrainer, and with its defaults for settings that are not in the config."""
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    times: list[float] = []

    class StepClock(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
        def on_log(self, _: object, __: object, ___: object, logs: dict[str, float], **____: object) -> None:
            if "loss" in logs:
                times.append(time.monotonic())

    training, length = config.training, config.model.max_length
    arguments = SFTConfig(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        gradient_checkpointing=training.gradient_checkpointing,
        max_steps=training.max_steps or 1,
        learning_rate=training.learning_rate,
        warmup_steps=round((training.max_steps or 1) * training.warmup_ratio),
        weight_decay=training.weight_decay,
        seed=training.seed,
        max_length=length,
        completion_only_loss=True,
        bf16=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model, tokenizer = loaded
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=arguments,
        train_dataset=_add_completion_mask(rows),
        callbacks=[StepClock()],
    )
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return ScriptResult(times, losses, model, torch.cuda.max_memory_reserved())


def _add_completion_mask(rows: datasets.Dataset) -> datasets.Dataset:
    """Replace labels by `completion_mask`, which is 1 for supervised tokens, as SFTTrainer expects."""
    return rows.map(
        lambda row: {"completion_mask": [int(label >= 0) for label in row["labels"]]}, remove_columns=["labels"]
    )
