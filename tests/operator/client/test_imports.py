"""Tests of what the client imports."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "kubernetes", "boto3", "obstore", "scipy", "cel", "kopf")


def test_import_client_loads_no_heavy_packages() -> None:
    code = f"import sys, finetune_operator.client; print([name for name in {HEAVY} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
