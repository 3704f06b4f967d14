"""Measures the support matrix: `python -m tests.matrix.measure [--families a,b] [--unsloth] [--write]`."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings


def main() -> int:
    """Measure the families, print each, and write the matrix if asked. Return 1 if there are defects."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", default="")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    from finetune_trainer.modeling import loading
    loading.import_backend("transformers", "nf4")
    import torch
    torch.set_num_threads(1)
    from tests.matrix.families import MODEL_TYPES
    from tests.matrix.measurement import measure_family
    for f in [x for x in arguments.families.split(",") if x] or MODEL_TYPES:
        t=time.time()
        m=measure_family(f)
        print("==",f,f"{time.time()-t:.1f}",{k:v[:200] for k,v in m.cells.items()},flush=True)
        for k,v in m.tracebacks.items(): print(f"--TB {f} {k}\n{v}",file=sys.stderr,flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
