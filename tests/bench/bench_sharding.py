"""Memory of each rank while it loads a base model, with and without sharding, on the CPU: `make bench-sharding`.

A model of random weights in files of 50 MB is loaded by 1, 2 and 4 ranks in another precision than that of its files,
so that no weight stays in a mapped file. Each rank samples its own private memory (`RssAnon`).
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.private_memory import PrivateMemory
from tests.support.trainer.s3_server import free_port
from tests.support.trainer.tiny_model import config

from finetune_trainer.contract import SHARDING_ENV
from finetune_trainer.distributed import collectives, topology

_SHAPE = {
    "vocab_size": 16384,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
_GROUPS = (("none", 1), ("full", 1), ("full", 2), ("full", 4))


def main() -> None:
    """Print the table. As `rank FOLDER`, measure one rank."""
    if sys.argv[1:2] == ["rank"]:
        _measure_rank(Path(sys.argv[2]))
        return
    with TemporaryDirectory() as folder:
        size = _write_model(Path(folder))
        _print_line(f"Base model: {size >> 20} MiB in bf16.\n")
        _print_line("| Sharding | Ranks | Rank | Held | Peak while loading |")
        _print_line("| --- | --- | --- | --- | --- |")
        for sharding, ranks in _GROUPS:
            _run_group(folder, sharding, ranks)


def _write_model(folder: Path) -> int:
    """Write the model, and return the size of its weights in bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**_SHAPE))
    model.save_pretrained(folder, max_shard_size="50MB")
    return 2 * int(model.num_parameters())


def _run_group(folder: str, sharding: str, ranks: int) -> None:
    port = str(free_port())
    environment = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        SHARDING_ENV: sharding,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.bench.bench_sharding", "rank", folder]
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank), "LOCAL_RANK": "0"}) for rank in range(ranks)
    ]
    if sum(process.wait() for process in processes):
        raise SystemExit("a rank failed")


def _measure_rank(folder: Path) -> None:
    from finetune_trainer.modeling import backends, loading

    backends.import_backend("transformers")
    importlib.import_module("transformers.models.llama.modeling_llama")  # libraries take more memory than the model
    collectives.init_process_group(lambda: None)
    collectives.barrier()
    with PrivateMemory(0.005) as memory:
        before = memory.reset()
        loaded = loading.load_model(config({"precision": "bf16"}), folder, "transformers")
        peak, held = memory.peak - before, memory.reset() - before
    collectives.barrier()
    del loaded
    name = os.environ[SHARDING_ENV]
    _print_line(f"| {name} | {topology.world_size()} | {topology.rank()} | {held} MiB | {peak} MiB |")


def _print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
