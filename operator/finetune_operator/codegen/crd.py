"""The CustomResourceDefinition, generated from the classes in `api`.

pydantic generates JSON Schema. The API server requires a "structural schema", a subset of OpenAPI v3:
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from finetune_operator.api import GROUP, KIND, PLURAL, VERSION, FineTuneJob
from finetune_trainer.contract import DNS_LABEL_PATTERN, JOB_NAME_MAX_LENGTH

Schema = dict[str, Any]

_COLUMNS = (  # (name, type, path, 1 = only with `-o wide`)
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "integer", ".status.progress.percentage", 0),
    ("Step", "integer", ".status.progress.step", 0),
    ("Loss", "number", ".status.progress.loss", 0),
    ("ETA", "string", ".status.progress.estimatedRemaining", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Running")].reason', 1),
    ("Model", "string", ".spec.model.uri", 1),
    ("Attempts", "integer", ".status.attempts", 1),
    ("Adapter", "string", ".status.result.adapterURI", 1),
)

_ROOT_RULES = [
    {
        "rule": f"self.metadata.name.size() <= {JOB_NAME_MAX_LENGTH}",
        "message": f"metadata.name must be at most {JOB_NAME_MAX_LENGTH} characters, so that pod names stay valid",
    },
    {
        "rule": f"self.metadata.name.matches('{DNS_LABEL_PATTERN}')",
        "message": "metadata.name must be a DNS label: a-z, 0-9 and '-', no dots",
    },
    {  # a root rule, because it uses spec and status; before the condition, a Job of the old spec may exist
        "rule": "self.spec.compute == oldSelf.spec.compute || (self.spec.suspend && oldSelf.spec.suspend "
        "&& has(oldSelf.status) && has(oldSelf.status.conditions) "
        "&& oldSelf.status.conditions.exists(c, c.type == 'Suspended' && c.status == 'True'))",
        "message": "compute can change only while suspended; set suspend to true and wait for the condition Suspended",
    },
]

# `title` is redundant; pruning and strict field validation replace `additionalProperties: false`.
_DROPPED = frozenset({"title", "$defs", "additionalProperties", "patternProperties", "propertyNames", "const"})


class _AbsentNotNull(GenerateJsonSchema):
    """Schema generator that omits null: optional fields are absent, and `anyOf: [T, null]` is not structural."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def custom_resource_definition() -> Schema:
    """Return the CRD as a dictionary."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["ftj"],
                "categories": ["finetune"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
                    "schema": {"openAPIV3Schema": root_schema()},
                }
            ],
        },
    }


def root_schema() -> Schema:
    """Return the structural schema of a FineTuneJob."""
    generated = FineTuneJob.model_json_schema(by_alias=True, schema_generator=_AbsentNotNull)
    schema = _structural(generated, generated["$defs"])
    properties = schema["properties"]
    return {
        "description": schema["description"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": properties["spec"],
            # Generation 0, so that tools do not treat an object as ready before the operator has reconciled it.
            "status": {**properties["status"], "default": {"observedGeneration": 0}},
        },
        "x-kubernetes-validations": _ROOT_RULES,
    }


def _column(name: str, kind: str, path: str, priority: int) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "priority": priority} if priority else column


def _structural(node: Schema, definitions: Schema) -> Schema:
    node = _inlined(node, definitions)
    schema = {key: value for key, value in node.items() if key not in _DROPPED}
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if "const" in node:
        schema["enum"] = [node["const"]]
    if "properties" in node:
        schema["properties"] = {name: _structural(each, definitions) for name, each in node["properties"].items()}
    if "items" in node:
        schema["items"] = _structural(node["items"], definitions)
    return _default(_exclusive(_map(schema, node, definitions)))


def _inlined(node: Schema, definitions: Schema) -> Schema:
    """Return the node with a `$ref` replaced by its target. Keys of the node itself take precedence."""
    if "$ref" not in node:
        return node
    target = _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


def _map(schema: Schema, node: Schema, definitions: Schema) -> Schema:
    """Convert the schema of a `dict[K, V]`. Structural schemas can limit keys only with CEL rules."""
    patterns = node.get("patternProperties", {})
    values = next(iter(patterns.values()), node.get("additionalProperties"))
    if not isinstance(values, dict):
        return schema
    rules = [f"self.all(key, key.matches('{pattern}'))" for pattern in patterns]
    rules += [_key_rule(node["propertyNames"])] if "propertyNames" in node else []
    if rules:
        schema["x-kubernetes-validations"] = [{"rule": rule, "message": "a key is malformed"} for rule in rules]
    schema["additionalProperties"] = _structural(values, definitions)
    return schema


def _key_rule(names: Schema) -> str:
    if "enum" in names:
        return f"self.all(key, key in {names['enum']})"
    return f"self.all(key, key.size() <= {names['maxLength']})"


def _exclusive(schema: Schema) -> Schema:
    """Convert exclusive limits, which are flags in OpenAPI v3.0."""
    for exclusive, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            schema[limit], schema[exclusive] = schema[exclusive], True
    return schema


def _default(schema: Schema) -> Schema:
    """Convert the default: objects in full and without nulls.

    CEL rules see the default of an object before its fields add their own.
    """
    default = schema.pop("default", None)
    if isinstance(default, dict):
        return {**schema, "default": _without_nulls(default)}
    return schema if default is None else {**schema, "default": default}


def _without_nulls(value: Schema) -> Schema:
    return {
        key: _without_nulls(each) if isinstance(each, dict) else each for key, each in value.items() if each is not None
    }
