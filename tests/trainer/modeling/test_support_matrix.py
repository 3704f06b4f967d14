"""The support matrix is that of the locked libraries, and the trainer refuses what it knows not to work."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.matrix.families import MODEL_TYPES
from tests.matrix.measure import PAGE_PATH, compute_lock_hash
from tests.matrix.page import render_page
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import VolumeModelSource, read_model_settings
from finetune_trainer.modeling import support_matrix
from finetune_trainer.modeling.backends import choose_backend
from finetune_trainer.modeling.support_matrix import (
    COLUMNS,
    MATRIX_PATH,
    NO_PREFIX,
    NOT_MEASURED,
    YES,
    check_support,
    find_problem,
    load_families,
)

MATRIX = json.loads(MATRIX_PATH.read_bytes())
MIN_FAMILIES = 45
OPTIONS = {
    "packs": {"training": {"packing": True}},
    "dpo": {"training": {"method": "dpo"}},
    "nf4": {"model": {"quantization": "nf4"}},
    "int8": {"model": {"quantization": "int8"}},
    "merges": {"output": {"merged": True}},
    "unsloth": {"training": {"backend": "unsloth"}},
}
REPRESENTATIVES = (
    "llama",
    "qwen3",
    "gemma3_text",
    "gemma3",
    "qwen3_moe",
    "gpt_oss",
    "granitemoehybrid",
    "phi3",
)


def build_config(column: str) -> TrainerConfig:
    """Return a config that asks for the option of a column."""
    settings = config().to_json()
    for section, fields in OPTIONS[column].items():
        settings[section] |= fields
    return TrainerConfig.model_validate(settings)


def list_cells(prefix: str) -> list[tuple[str, str]]:
    """Return families and option columns whose cells begin with `prefix`."""
    return [
        (family, column)
        for family, cells in load_families().items()
        for column in OPTIONS
        if cells[column].startswith(prefix)
    ]


def test_matrix_is_of_the_locked_libraries() -> None:
    assert MATRIX["lockSha256"] == compute_lock_hash(), "uv.lock has changed: run make test-matrix"


def test_matrix_page_is_generated_from_the_matrix() -> None:
    assert PAGE_PATH.read_text() == render_page(MATRIX), "run make test-matrix"


def test_matrix_has_all_families_and_columns() -> None:
    assert len(MATRIX["families"]) >= MIN_FAMILIES
    assert set(MATRIX["families"]) == set(MODEL_TYPES)
    for family, cells in MATRIX["families"].items():
        assert tuple(cells) == COLUMNS, family
        assert all(cell in (YES, NOT_MEASURED) or cell.startswith(NO_PREFIX) for cell in cells.values()), family


def test_check_support_refuses_every_option_that_is_known_not_to_work() -> None:
    refused = list_cells(NO_PREFIX)
    assert ("gpt_oss", "packs") in refused
    for family, column in refused:
        with pytest.raises(TrainerError, match=f"the model family {family} does not support") as caught:
            check_support(build_config(column), family)
        assert caught.value.reason is Reason.CONFIG_INVALID
        assert MATRIX["families"][family][column].removeprefix(NO_PREFIX) in caught.value.message


def test_check_support_accepts_all_other_options() -> None:
    for family, column in [*list_cells(YES), *list_cells(NOT_MEASURED)]:
        check_support(build_config(column), family)
    for column in OPTIONS:
        check_support(build_config(column), "a_family_of_next_year")
    for family in MODEL_TYPES:
        check_support(config(), family)


@pytest.fixture
def write_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Return a function that replaces the matrix by one of Llama, with one cell that differs from `yes`."""

    def write_cell(column: str, cell: str) -> None:
        content = {"families": {"llama": dict.fromkeys(COLUMNS, YES) | {column: cell}}}
        (tmp_path / "matrix.json").write_text(json.dumps(content))
        monkeypatch.setattr(support_matrix, "MATRIX_PATH", tmp_path / "matrix.json")
        load_families.cache_clear()

    yield write_cell
    load_families.cache_clear()


@pytest.mark.parametrize(
    ("column", "method", "is_refused"),
    [
        ("loads", "dpo", True),
        ("sft", "sft", True),
        ("sft", "dpo", False),
        ("evaluates", "kto", True),
        ("exports", "sft", True),
    ],
)
def test_check_support_family_without_a_step_of_the_run_is_refused(
    write_cell: Callable[[str, str], None], column: str, method: str, is_refused: bool
) -> None:
    write_cell(column, "no: its class has no such step")
    if not is_refused:
        check_support(config({"method": method}), "llama")
        return
    with pytest.raises(TrainerError) as caught:
        check_support(config({"method": method}), "llama")
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    assert caught.value.message == (
        "the model family llama is not supported: its class has no such step; use a base model of another family"
    )


def test_check_support_smaller_quantized_fraction_is_not_refused() -> None:
    families = {family for family, column in list_cells(NO_PREFIX) if column in ("nf4", "int8")}
    for family in families:
        settings = config().to_json()
        settings["model"] |= {"quantization": "nf4", "minQuantizedFraction": 0.5}
        check_support(TrainerConfig.model_validate(settings), family)


@pytest.mark.parametrize(
    ("content", "model_type"),
    [(b'{"model_type": "llama"}', "llama"), (b"{}", None), (b"[]", None), (b"\xff", None), (None, None)],
    ids=["valid", "without", "list", "binary", "missing"],
)
def test_read_model_settings_invalid_config_is_left_to_the_load(
    tmp_path: Path, content: bytes | None, model_type: str | None
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert read_model_settings(VolumeModelSource(tmp_path)).get("model_type") == model_type


@pytest.mark.parametrize("family", load_families())
def test_choose_backend_unsloth_is_refused_where_it_fails(family: str) -> None:
    requested, settings = config({"backend": "unsloth"}), {"model_type": family}
    if find_problem(family, "unsloth") is None:
        assert choose_backend(requested, lambda: settings) == "unsloth"
        return
    with pytest.raises(TrainerError, match=f"of the family {family}"):
        choose_backend(requested, lambda: settings)


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_measurement_of_family_matches_the_matrix(family: str) -> None:
    from tests.support.trainer.tiny_model import import_libraries

    import_libraries()
    from tests.matrix.measurement import measure_family

    measurement = measure_family(family)
    assert measurement.tracebacks == {}
    stored = load_families()[family]
    assert {column: cell.split(":")[0] for column, cell in measurement.cells.items()} == {
        column: stored[column].split(":")[0] for column in measurement.cells
    }
