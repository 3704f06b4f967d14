"""Plain script to compare with: download with boto3, train with TRL. Usage: `plain_trl.py ENDPOINT FOLDER STEPS`."""

from __future__ import annotations

import sys
from pathlib import Path

import boto3


def download_inputs(endpoint: str, folder: Path) -> None:
    """Download the model and the data, object by object."""
    client = boto3.client("s3", endpoint_url=endpoint)
    for bucket in ("models", "data"):
        for entry in client.list_objects_v2(Bucket=bucket)["Contents"]:
            path = folder / bucket / entry["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, entry["Key"], str(path))


def train(folder: Path, steps: int) -> None:
    """Train with the settings that the trainer uses in the same benchmark."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback, TrainerState
    from trl import SFTConfig, SFTTrainer

    class PrintSteps(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
        def on_step_end(self, _: object, state: TrainerState, *__: object, **___: object) -> None:
            if state.global_step == 1 or state.global_step % max(steps // 20, 1) == 0:
                print(f"step {state.global_step}/{steps}")

    rows = load_dataset("json", data_files=str(folder / "data/train.jsonl"), split="train", cache_dir=str(folder / "c"))
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "models/tiny", dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(folder / "out"),
            max_steps=steps,
            per_device_train_batch_size=2,
            gradient_checkpointing=False,
            max_length=256,
            learning_rate=2e-4,
            loss_type="chunked_nll",
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[PrintSteps()],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    endpoint, target, count = sys.argv[1:]
    download_inputs(endpoint, Path(target))
    train(Path(target), int(count))
