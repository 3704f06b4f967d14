"""Peak memory by phase, counted on the CPU, compared with the prediction of `plan`:

    PYTHONPATH=trainer:. python -m tests.bench.bench_memory [NAME...]

Small models are loaded, trained, evaluated and exported by the code of a run. The bytes of all live tensors are counted
at each operator. A name selects the cases that contain it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.trainer.memory_runs import MemoryCase, PhasePeak, compare_phases

MAX_ERROR = 0.15
_WIDE = {"hidden_size": 64, "intermediate_size": 1024, "head_dim": 8}
_LARGE_VOCABULARY = {"vocab_size": 40_000, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
_LARGE_WEIGHTS = {"hidden_size": 512, "intermediate_size": 2048, "head_dim": 64}
_SPARSE = {"lora": {"targetModules": ["q_proj", "v_proj"]}}


def list_cases() -> Iterator[MemoryCase]:
    """Yield the cases. In each group another part dominates."""
    for precision, recomputes in product(("bf16", "fp32"), (False, True)):
        training = {"precision": precision, "gradientCheckpointing": recomputes, "batchSize": 4}
        name = f"{precision}{', recomputed' if recomputes else ''}"
        yield MemoryCase(f"activations, {name}", sizes=_WIDE, training=training)
        yield MemoryCase(f"vocabulary, {name}", sizes=_LARGE_VOCABULARY, training=training)
        yield MemoryCase(f"one short row, {name}", training={**training, "batchSize": 1}, tokens=128)
        yield MemoryCase(f"qwen3, {name}", "qwen3", {"head_dim": 32}, training)
        yield MemoryCase(f"gemma3, {name}", "gemma3", {"vocab_size": 20_000}, training)
    plain = {"batchSize": 4, "gradientCheckpointing": False, "precision": "bf16"}
    weights = {**plain, "batchSize": 1}
    yield MemoryCase("weights, merged", sizes=_LARGE_WEIGHTS, training=weights, tokens=128, merges=True)
    yield MemoryCase("nf4", sizes=_LARGE_WEIGHTS, training=weights, quantization="nf4", tokens=128)
    yield MemoryCase("int8", sizes=_LARGE_WEIGHTS, training=weights, quantization="int8", tokens=128)
    yield MemoryCase("adapter on queries and values", training={**plain, **_SPARSE})
    yield MemoryCase("dpo", training={**plain, "method": "dpo", "batchSize": 2}, tokens=128)
    yield MemoryCase("padded rows", training={**plain, "batchSize": 2}, tokens=1024, pads=True)
    yield MemoryCase("long row", training={**plain, "batchSize": 1}, tokens=2048)


def format_row(name: str, phases: dict[str, PhasePeak]) -> str:
    """Return a row with the measured MiB and the prediction relative to it, by phase."""
    cells = [f"{peak.measured / 2**20:.1f} ({100 * (peak.ratio - 1):+.0f} %)" for peak in phases.values()]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table, and end with 1 if a prediction is wrong by more than 15 %."""
    print("| Case | Load | Training | Evaluation | Export |\n| --- | --- | --- | --- | --- |")
    worst = 0.0
    for case in list_cases():
        if sys.argv[1:] and not any(part in case.name for part in sys.argv[1:]):
            continue
        with TemporaryDirectory(prefix="bench-") as folder:
            phases = compare_phases(case, Path(folder))
        print(format_row(case.name, phases), flush=True)
        worst = max(worst, *(abs(peak.ratio - 1) for peak in phases.values()))
    print(f"\nlargest error: {100 * worst:.0f} %")
    raise SystemExit(worst > MAX_ERROR)


if __name__ == "__main__":
    main()
