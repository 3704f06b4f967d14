"""A full disk is the reason of a failed attempt, whatever library writes and however it reports that."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.trainer.small_disk import mount_disk

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry.failures import describe_failure, is_bug


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mount_disk(tmp_path_factory.mktemp("small") / "disk", 2**16) as folder:
        yield folder


def write_checkpoint(disk: Path) -> None:
    import torch

    torch.save({"state": torch.zeros(2**16)}, disk / "optimizer.pt")


def write_adapter(disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2**16)}, disk / "adapter.safetensors")


def write_tokenizer(disk: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"word{number}": number for number in range(10_000)}, "word0")).save(
        str(disk / "t.json")
    )


def write_prepared_rows(disk: Path) -> None:
    from finetune_trainer.data.tokenized_rows import TokenizedRow, TokenizedRowWriter

    with TokenizedRowWriter(disk / "rows.arrow", {"input_ids": "ids"}) as writer:
        writer.add(TokenizedRow(2**16, columns={"input_ids": [1] * 2**16}, tokens=2**16))


def write_row_hashes(disk: Path) -> None:
    from finetune_trainer.data.deduplication import HashSet

    HashSet(disk)._allocate_table(2**20)


def write_text(disk: Path) -> None:
    (disk / "report.html").write_text("x" * 2**20)


def write_translated(disk: Path) -> None:
    try:
        write_text(disk)
    except OSError as error:
        raise TrainerError(Reason.MODEL_INVALID, "the base model cannot be loaded") from error


WRITERS = [
    write_checkpoint,
    write_adapter,
    write_tokenizer,
    write_prepared_rows,
    write_row_hashes,
    write_text,
    write_translated,
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_writer_on_full_disk_is_disk_full(disk: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        write(disk)
    for path in disk.iterdir():
        path.unlink()
    outcome = describe_failure(caught.value)
    assert outcome.reason is Reason.DISK_FULL, repr(caught.value)
    assert (
        "no space left on device; set compute.scratch.size to a larger size, or use nodes with a larger disk"
        in outcome.message
    )
    assert not is_bug(caught.value)


def test_full_disk_that_is_not_scratch_keeps_its_message() -> None:
    message = "/model-cache/v1: No space left on device"
    error = TrainerError(Reason.DISK_FULL, message)
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    outcome = describe_failure(error)
    assert (outcome.reason, outcome.message) == (Reason.DISK_FULL, message)
