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

from finetune_trainer.contract import SHARDING_ENV, Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import VolumeModelSource, read_model_settings
from finetune_trainer.modeling import support_matrix
from finetune_trainer.modeling.backends import choose_backend
from finetune_trainer.modeling.support_matrix import (
    COLUMNS,
    MATRIX_PATH,
    NO_PREFIX,
    NOT_MEASURED,
    PARTIAL_PREFIX,
    VARIANT_SEPARATOR,
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
    "granitemoehybrid:attention",
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
        prefixes = (NO_PREFIX, PARTIAL_PREFIX)
        assert all(cell in (YES, NOT_MEASURED) or cell.startswith(prefixes) for cell in cells.values()), family
        assert all(cells[column] == YES for column in ("loads", "sft", "evaluates", "exports")), family


def test_matrix_partial_cells_are_those_of_quantization() -> None:
    partial = list_cells(PARTIAL_PREFIX)
    assert ("mixtral", "nf4") in partial
    assert {column for _, column in partial} == {"nf4", "int8"}


def test_check_support_refuses_every_option_that_is_known_not_to_work() -> None:
    refused = list_cells(NO_PREFIX)
    assert ("gpt_oss", "packs") in refused
    for family, column in [(family, column) for family, column in refused if VARIANT_SEPARATOR not in family]:
        pattern = f"family {family} does not support .*, as measured on a small model of the family .*; (set|use) "
        with pytest.raises(TrainerError, match=pattern) as caught:
            check_support(build_config(column), family)
        assert caught.value.reason is Reason.CONFIG_INVALID
        problem = MATRIX["families"][family][column].removeprefix(NO_PREFIX).removeprefix("training.packing: ")
        assert f"({problem.partition(';')[0]})" in caught.value.message


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("falcon_h1", r"falcon_h1 does not support compute\.sharding full, as measured .*; set it to none"),
        ("a_family_of_next_year", r"a_family_of_next_year was not measured with compute\.sharding full"),
    ],
)
def test_check_support_sharding_that_is_not_known_to_work_is_refused(
    monkeypatch: pytest.MonkeyPatch, family: str, message: str
) -> None:
    monkeypatch.setenv(SHARDING_ENV, "full")
    check_support(config(), "llama")
    with pytest.raises(TrainerError, match=message) as caught:
        check_support(config(), family)
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_check_support_accepts_all_other_options() -> None:
    for family, column in [*list_cells(YES), *list_cells(NOT_MEASURED), *list_cells(PARTIAL_PREFIX)]:
        check_support(build_config(column), family.partition(VARIANT_SEPARATOR)[0])
    for column in OPTIONS:
        check_support(build_config(column), "a_family_of_next_year")
    for family in MODEL_TYPES:
        check_support(config(), family.partition(VARIANT_SEPARATOR)[0])


@pytest.fixture
def write_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that replaces the matrix by one of variants of Llama, with cells of a column that differ from
    `yes`."""

    def write_cells(column: str, *cells: str) -> None:
        names = ["llama", *(f"llama:{number}" for number in range(1, len(cells)))]
        rows = {name: dict.fromkeys(COLUMNS, YES) | {column: cell} for name, cell in zip(names, cells, strict=True)}
        content = {"families": rows}
        (tmp_path / "matrix.json").write_text(json.dumps(content))
        monkeypatch.setattr(support_matrix, "MATRIX_PATH", tmp_path / "matrix.json")
        load_families.cache_clear()

    yield write_cells
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
    write_cells: Callable[..., None], column: str, method: str, is_refused: bool
) -> None:
    write_cells(column, "no: its class has no such step; change it")
    if not is_refused:
        check_support(config({"method": method}), "llama")
        return
    with pytest.raises(TrainerError) as caught:
        check_support(config({"method": method}), "llama")
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    assert caught.value.message == (
        "the model family llama is not supported, as measured on a small model of the family (its class has no such "
        "step); use one of another family"
    )


@pytest.mark.parametrize(
    ("cells", "is_refused"),
    [
        (["no: rows are mixed", "yes"], False),
        (["yes", "no: rows are mixed"], False),
        (["no: rows are mixed", "no: rows are mixed too"], True),
        (["no: rows are mixed", "not measured"], True),
        (["not measured", "not measured"], False),
        (["no: rows are mixed", "partial: half of it"], False),
    ],
)
def test_check_support_family_is_refused_only_if_no_variant_works(
    write_cells: Callable[..., None], cells: list[str], is_refused: bool
) -> None:
    write_cells("packs", *cells)
    if not is_refused:
        check_support(build_config("packs"), "llama")
        return
    with pytest.raises(TrainerError) as caught:
        check_support(build_config("packs"), "llama")
    assert caught.value.message == (
        "the model family llama does not support training.packing, as measured on a small model of the family (rows "
        "are mixed); set it to false"
    )


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
    family = family.partition(VARIANT_SEPARATOR)[0]
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
