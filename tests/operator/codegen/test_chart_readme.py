"""The README of the chart lists all values with their descriptions. A value without one is an error."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from finetune_operator.codegen import __main__ as generate
from finetune_operator.codegen.chart_readme import UndocumentedValuesError, read_comments, render_readme

if TYPE_CHECKING:
    from pathlib import Path

CHART = {"description": "A chart.", "kubeVersion": ">=1.31.0-0"}
SCHEMA: dict[str, Any] = {
    "definitions": {"name": {"type": "string"}},
    "properties": {
        "name": {"$ref": "#/definitions/name"},
        "old": {"type": "string", "deprecated": True, "description": "Use name."},
        "group": {
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": {"$ref": "#/definitions/name"}},
                "map": {"type": "object"},
            },
        },
    },
}
VALUES = """\
# A name with a | and * in
# two lines.
name: a

# The group.
group:
  # Items.
  items:
    - b
  # A map.
  map: {c: 1}
"""


def test_readme_values_are_listed_with_type_default_and_description() -> None:
    text = render_readme(CHART, VALUES, SCHEMA)
    assert '| `name` | string | `"a"` | A name with a \\| and \\* in two lines. |' in text
    assert "## group\n\nThe group.\n" in text
    assert '| `group.items` | list of strings | `["b"]` | Items. |' in text
    assert '| `group.map` | map | `{"c": 1}` | A map. |' in text
    assert "| `old` | Use name. |" in text


@pytest.mark.parametrize("comment", ["# Items.\n", "# A map.\n", "# A name with a | and * in\n# two lines.\n"])
def test_readme_value_without_comment_is_an_error(comment: str) -> None:
    with pytest.raises(UndocumentedValuesError, match=r"write a comment above each of [a-z.]+$"):
        render_readme(CHART, VALUES.replace(f"  {comment}", "").replace(comment, ""), SCHEMA)


def test_readme_value_without_schema_is_an_error() -> None:
    with pytest.raises(UndocumentedValuesError, match=r"values\.schema\.json: other of values\.yaml is missing"):
        render_readme(CHART, VALUES + "# Another.\nother: 1\n", SCHEMA)


def test_readme_comments_separated_by_empty_line_do_not_count() -> None:
    assert read_comments("# Not this.\n\n# This.\na: 1\nb: 2\n") == {"a": "This.", "b": ""}


def test_generate_undocumented_value_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(generate.CHART, tmp_path / "chart")
    monkeypatch.setattr(generate, "CHART", tmp_path / "chart")
    values = tmp_path / "chart" / "values.yaml"
    values.write_text(values.read_text().replace("# Annotations of the Deployment.\n", ""))
    assert generate.main(["--check"]) == 1
    assert "deploymentAnnotations" in capsys.readouterr().err


def test_chart_readme_lists_every_default() -> None:
    text = (generate.CHART / "README.md").read_text()
    for key in yaml.safe_load((generate.CHART / "values.yaml").read_text()):
        assert f"`{key}" in text
    schema = json.loads((generate.CHART / "values.schema.json").read_text())
    deprecated = [key for key, node in schema["properties"].items() if node.get("deprecated")]
    assert deprecated
    assert all(f"| `{key}` |" in text for key in deprecated)
