"""A real API server accepts the manifests for vLLM in a namespace that is restricted, and reports no warning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml
from tests.operator.integration.test_chart_admission import apply_in_dry_run
from tests.serving.samples import FOLDER

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("name", ["vllm.yaml", "vllm-champion.yaml"])
async def test_serving_manifest_is_accepted_in_a_restricted_namespace(world: NamespaceHarness, name: str) -> None:
    objects = [
        {**each, "metadata": {**each["metadata"], "namespace": world.namespace}}
        for each in yaml.safe_load_all((FOLDER / name).read_text())
    ]
    answer = apply_in_dry_run(world.proxy.target, objects)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("serverside-applied") == len(objects) == 2
