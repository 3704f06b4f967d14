"""Plain script that trains with TRL or Unsloth directly, to compare the trainer with.

Usage: `plain_trl_training.py trl|unsloth MODEL OUT SETTINGS ROWS...`. Each of ROWS is a JSON Lines file of `messages`,
or of `input_ids` and `labels`. OUT is a JSON list with one object per file: the losses of its steps, and the CPU
seconds of the process at the end of each step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

DEFAULT_OPTIONS: dict[str, Any] = {"steps": 4, "batch": 4, "accumulation": 1, "rate": 1e-2, "seed": 42}
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_with_unsloth(model_dir: str, seed: int) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel  # must be imported before torch

    import torch  # isort: skip

    # Without a dtype Unsloth uses bf16 on CPUs that support it.
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_dir, max_seq_length=256, dtype=torch.float32, load_in_4bit=False, use_gradient_checkpointing=False
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        target_modules=TARGET_MODULES,
        use_gradient_checkpointing=False,
        random_state=seed,
    )
    return model, tokenizer


def load_with_trl(model_dir: str, seed: int) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    set_seed(seed)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora), AutoTokenizer.from_pretrained(model_dir)


def train(loaded: tuple[Any, Any], rows: str, out: Path, options: dict[str, Any]) -> dict[str, list[float]]:
    """Train on a file. Return the losses of the steps, and the CPU seconds of the process at the end of each."""
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = loaded
    times: list[float] = []

    class StepClock(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.process_time())

    arguments = SFTConfig(
        output_dir=str(out.parent / "trainer"),
        per_device_train_batch_size=options["batch"],
        gradient_accumulation_steps=options["accumulation"],
        max_steps=options["steps"],
        learning_rate=options["rate"],
        weight_decay=0.01,
        seed=options["seed"],
        gradient_checkpointing=False,
        max_length=256,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = load_dataset("json", data_files=rows, split="train", cache_dir=str(out.parent / "cache"))
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, args=arguments, train_dataset=data, callbacks=[StepClock()]
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "cpu": times}


def main() -> None:
    backend, model_dir, out, settings, *files = sys.argv[1:]
    options = DEFAULT_OPTIONS | json.loads(settings)
    load, results = (load_with_unsloth if backend == "unsloth" else load_with_trl), []
    for rows in files:
        results.append(train(load(model_dir, options["seed"]), rows, Path(out), options))
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
