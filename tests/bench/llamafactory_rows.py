"""LLaMA-Factory's preparation of chat rows, run by its own Python: `python llamafactory_rows.py FOLDER MODEL`.

It calls LLaMA-Factory's `get_dataset`, which loads, aligns and tokenizes `rows.jsonl` of the folder as its training
does, and prints wall-clock and CPU seconds and the number of rows as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
_TAGS |= {"assistant_tag": "assistant", "system_tag": "system"}
_ROWS = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": _TAGS}


def main(folder: str, model: str) -> None:
    # It is only installed in its own environment.
    from llamafactory.data import (  # type: ignore[import-not-found]
        get_dataset,
        get_template_and_fix_tokenizer,
    )
    from llamafactory.hparams import DataArguments, ModelArguments  # type: ignore[import-not-found]
    from transformers import AutoTokenizer, Seq2SeqTrainingArguments

    (Path(folder) / "dataset_info.json").write_text(json.dumps({"rows": _ROWS}))
    tokenizer = AutoTokenizer.from_pretrained(model)
    data = DataArguments(template="chatml", dataset="rows", dataset_dir=folder, cutoff_len=2048, overwrite_cache=True)
    template = get_template_and_fix_tokenizer(tokenizer, data)
    training = Seq2SeqTrainingArguments(output_dir=folder, report_to="none", use_cpu=True, log_level="error")
    wall, cpu = time.monotonic(), time.process_time()
    dataset = get_dataset(template, ModelArguments(model_name_or_path=model), data, training, "sft", tokenizer)
    print(json.dumps([time.monotonic() - wall, time.process_time() - cpu, len(dataset["train_dataset"])]))


if __name__ == "__main__":
    main(*sys.argv[1:])
