"""Prepare, train and export with the backend that `auto` chooses, then generate answers with the adapter.

The tiny model memorizes two answers, on a GPU if there is one. Expected and generated answers are written to
answers.json in the folder given as argument.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.trainer import tiny_model

ANSWERS = {"What is red?": "A warm colour.", "What is blue?": "A cold colour."}
GENERATE_SCRIPT = """
import json, sys
from pathlib import Path
from finetune_trainer.modeling.generation import generate_completions
base, adapter, out, *prompts = sys.argv[1:]
Path(out).write_text(json.dumps(generate_completions(Path(base), Path(adapter), prompts, 40)))
"""


def main(folder: Path) -> None:
    """Run all steps. An error of any step is not caught."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # tiny_model hides the GPU from tests
    from finetune_trainer.data import preparation
    from finetune_trainer.data.row_schema import RowEncoding
    from finetune_trainer.modeling import backends, loading
    from finetune_trainer.publishing import export
    from finetune_trainer.telemetry.progress import ProgressReporter
    from finetune_trainer.training.methods import get_method
    from finetune_trainer.training.state import TrainingSession
    from finetune_trainer.training.train import train

    shape = {"maxSteps": 120, "batchSize": 2, "gradientAccumulation": 1}
    config = tiny_model.config(shape)
    backend = backends.choose_backend(config)
    backends.import_backend(backend)
    base = tiny_model.build(folder / "base")
    tokenizer = loading.load_tokenizer(base)
    rows = tiny_model.write_rows(folder / "rows", [tiny_model.chat(*pair) for pair in ANSWERS.items()])
    files = preparation.DataFiles([(config.dataset.sources[0], [rows])], "sha256:0")
    prepared = preparation.prepare_dataset(config, files, RowEncoding(tokenizer, get_method(config)), folder)
    loaded = loading.LoadedModel(loading.load_model(config, base, backend), tokenizer, backend)
    metrics = train(config, loaded, prepared, TrainingSession(ProgressReporter()), folder).metrics
    export.export_adapter(config, loaded, folder / "adapter", "sha256:0", base)
    print(backend, json.dumps(metrics))
    out = folder / "got.json"  # generated in a separate process, from the files alone
    command = [sys.executable, "-c", GENERATE_SCRIPT, str(base), str(folder / "adapter"), str(out), *ANSWERS]
    subprocess.run(command, check=True)
    result = {"expected": list(ANSWERS.values()), "got": json.loads(out.read_text())}
    (folder / "answers.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
