"""The weights of a base model are downloaded while its data is prepared, and no longer if that fails."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.untrained_runs import build_config, prefix

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import resolve
from finetune_trainer.inputs.weights_download import start_weights_download
from finetune_trainer.storage import S3

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server

__all__ = ["prefix"]
pytestmark = pytest.mark.s3
SHARDS = [f"model-{number:05}-of-00040.safetensors" for number in range(1, 41)]


@pytest.fixture
def inputs(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy
) -> tuple[resolve.ResolvedInputs, resolve.DownloadedInputs]:
    """The inputs of a run with a sharded model, without its weights."""
    for name in SHARDS:
        s3.put(f"s3://models/sharded/{name}", name.encode() * 100)
    s3.put("s3://models/sharded/config.json", b"{}")
    config = build_config(s3, prefix, model={"uri": "s3://models/sharded"})
    resolved = resolve.resolve_inputs(config, S3(config.storage))
    return resolved, resolve.start_download(resolved, tmp_path).result()


def wait_for_download_threads() -> None:
    deadline = time.monotonic() + 30
    while any(thread.name.startswith(("weights", "object", "range")) for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the download continues"
        time.sleep(0.01)


def test_weights_arrive_while_the_data_is_prepared(
    inputs: tuple[resolve.ResolvedInputs, resolve.DownloadedInputs],
) -> None:
    with start_weights_download(*inputs) as weights:
        wait_for_download_threads()
        assert weights.missing_bytes == 0
        files = weights.wait()
    assert files.model.revision.startswith("sha256:")
    assert [(files.model_dir / name).read_bytes() for name in SHARDS] == [name.encode() * 100 for name in SHARDS]


def test_weights_download_stops_if_the_preparation_fails(
    inputs: tuple[resolve.ResolvedInputs, resolve.DownloadedInputs], proxy: FaultyProxy
) -> None:
    requested, failed = threading.Event(), threading.Event()

    def hold_response(_: str) -> None:
        requested.set()
        failed.wait(30)

    proxy.on_read = hold_response

    def prepare_invalid_data() -> None:
        with start_weights_download(*inputs):
            assert requested.wait(30)
            raise TrainerError(Reason.DATA_INVALID, "no valid rows")

    with pytest.raises(TrainerError, match="no valid rows"):
        prepare_invalid_data()
    failed.set()
    wait_for_download_threads()
    assert not any((inputs[1].model_dir / name).read_bytes().strip(b"\0") for name in SHARDS)
    assert len([path for path in proxy.read_paths if ".safetensors" in path]) < len(SHARDS)
