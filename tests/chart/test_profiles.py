"""Compute profiles in the values: the rendered file, the schema, the examples and the guide."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.policy.pod_fields import ProfilePart
from finetune_operator.policy.profiles import ContainerFields, ContainerResources, PodFields, Profile, parse_profiles

Manifest = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "manifests" / "profiles").glob("*.yaml"))
GUIDE = ROOT / "docs" / "how-to" / "compute-profiles.md"
PARTS = {"profile": Profile, "profilePodSpec": PodFields, "profileContainer": ContainerFields}


def _read_file(objects: list[Manifest]) -> bytes:
    (config_map,) = (each for each in objects if each["metadata"]["name"] == "finetune-operator-profiles")
    return str(config_map["data"]["profiles.json"]).encode()


def _iter_field_names(part: type[ProfilePart]) -> Iterator[str]:
    return (str(field.alias) for field in part.model_fields.values())


def test_profiles_file_is_mounted_where_operator_reads_it(
    render: Callable[..., list[Manifest]], deployment: Callable[..., Manifest]
) -> None:
    pod = deployment()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (variable,) = (each for each in container["env"] if each["name"] == "FINETUNE_OPERATOR_PROFILES_FILE")
    (mount,) = container["volumeMounts"]
    assert variable["value"] == f"{mount['mountPath']}/profiles.json"
    assert "subPath" not in mount  # the kubelet never updates such a file
    assert pod["volumes"] == [{"name": mount["name"], "configMap": {"name": "finetune-operator-profiles"}}]
    assert parse_profiles(_read_file(render())).profiles == {}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_profiles_example_is_rendered_unchanged(example: Path, render: Callable[..., list[Manifest]]) -> None:
    values = yaml.safe_load(example.read_text())
    rendered = parse_profiles(_read_file(render(values)))
    assert rendered.profiles == {name: Profile.model_validate(value) for name, value in values["profiles"].items()}
    assert rendered.default_profile == values.get("defaultProfile")
    assert f"../../manifests/profiles/{example.name}" in GUIDE.read_text()


def test_profiles_defaults_are_rendered(render: Callable[..., list[Manifest]]) -> None:
    values = {"profiles": {"a": {}, "b": {}}, "defaultProfile": "a", "namespaceProfiles": {"team": "b"}}
    rendered = parse_profiles(_read_file(render(values)))
    assert (rendered.get_default_name("team"), rendered.get_default_name("other")) == ("b", "a")


@pytest.mark.parametrize("values", [{"defaultProfile": "a"}, {"namespaceProfiles": {"team": "a"}}])
def test_profiles_default_that_does_not_exist_is_refused(
    template: Callable[..., subprocess.CompletedProcess[str]], values: Manifest
) -> None:
    result = template({"profiles": {"b": {}}, **values})
    assert result.returncode != 0
    assert "there is no profile a in profiles" in result.stderr


@pytest.mark.parametrize("text", ["\u0085 ends a line of YAML", "\x7f", "\u2028\ufeff", "{{ .Values }} $(A) \"'\n é"])
def test_profiles_unusual_characters_are_rendered_unchanged(render: Callable[..., list[Manifest]], text: str) -> None:
    values = {"profiles": {"a": {"container": {"env": [{"name": "A", "value": text}]}}}}
    (variable,) = parse_profiles(_read_file(render(values))).profiles["a"].container.env
    assert variable.value == text


@pytest.mark.parametrize("name", PARTS)
def test_values_schema_has_fields_of_profiles(chart: Path, name: str) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())["definitions"][name]
    assert set(schema["properties"]) == set(_iter_field_names(PARTS[name]))
    assert schema["additionalProperties"] is False


def test_profiles_guide_explains_every_field() -> None:
    text = GUIDE.read_text()
    names = [*_iter_field_names(Profile), *_iter_field_names(ContainerResources)]
    names += [f"podSpec.{name}" for name in _iter_field_names(PodFields)]
    names += [f"container.{name}" for name in _iter_field_names(ContainerFields)]
    assert [name for name in names if f"`{name}`" not in text and name not in ("podSpec", "container")] == []


def test_profiles_guide_values_are_valid(render: Callable[..., list[Manifest]]) -> None:
    values = yaml.safe_load(GUIDE.read_text().split("```yaml\n# values.yaml\n")[1].split("```")[0])
    assert set(parse_profiles(_read_file(render(values))).profiles) == set(values["profiles"])
