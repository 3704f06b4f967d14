"""The CustomResourceDefinition, generated from the classes in `api`.

pydantic generates JSON Schema. The API server requires a "structural schema", a subset of OpenAPI v3:
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from finetune_operator.api import GROUP, KIND, PLURAL, VERSION, FineTuneJob
from finetune_operator.api.schedule import SCHEDULE_KIND, SCHEDULE_PLURAL, FineTuneSchedule
from finetune_operator.api.sweep import SWEEP_KIND, SWEEP_PLURAL, FineTuneSweep
from finetune_operator.api.template import OWNER_NAME_RULES, build_name_rules
from finetune_trainer.contract import JOB_NAME_MAX_LENGTH, Model

Schema = dict[str, Any]

PrinterColumn = tuple[str, str, str, int]
"""Name, type, JSON path, and 1 for a column that only `-o wide` shows."""


class KindDefinition(NamedTuple):
    """What the CRD of a kind has besides the schema of its class."""

    model: type[Model]
    kind: str
    plural: str
    short_name: str
    columns: tuple[PrinterColumn, ...]
    root_rules: list[dict[str, str]]
    selectable_fields: tuple[str, ...] = ()


_JOB_COLUMNS: tuple[PrinterColumn, ...] = (
    ("Phase", "string", ".status.phase", 0),
    # All conditions have the same reason, and every status has this one. Runs that ended before `status.reason` was
    # added have no other.
    ("Reason", "string", '.status.conditions[?(@.type=="Running")].reason', 0),
    ("Progress", "string", ".status.progress.completed", 0),
    ("ETA", "string", ".status.progress.estimatedRemaining", 0),
    ("Loss", "number", ".status.progress.loss", 0),
    ("Duration", "string", ".status.duration", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Step", "integer", ".status.progress.step", 1),
    ("Model", "string", ".spec.model.uri", 1),
    ("Attempts", "integer", ".status.attempts", 1),
    ("Adapter", "string", ".status.result.adapterURI", 1),
)
_SCHEDULE_COLUMNS: tuple[PrinterColumn, ...] = (
    ("Schedule", "string", ".spec.schedule", 0),
    # Active, Suspended, or what must be corrected.
    ("Reason", "string", '.status.conditions[?(@.type=="Stalled")].reason', 0),
    ("Active", "string", ".status.active[0]", 0),
    ("Last Run", "string", ".status.runs[0].name", 0),
    ("Decision", "string", ".status.runs[0].decision", 0),
    ("Champion", "string", ".status.champion.run", 0),
    ("Up-To-Date", "string", '.status.conditions[?(@.type=="UpToDate")].status', 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Next", "string", ".status.nextScheduleTime", 1),  # a time in the future is `<invalid>` as a date
    ("Suspend", "boolean", ".spec.suspend", 1),
    ("Adapter", "string", ".status.champion.adapterURI", 1),
)
_SWEEP_COLUMNS: tuple[PrinterColumn, ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Reason", "string", ".status.reason", 0),
    ("Trials", "string", ".status.counts.finished", 0),
    ("Active", "integer", ".status.counts.active", 0),
    ("Failed", "integer", ".status.counts.failed", 0),
    ("Best", "string", ".status.best.name", 0),
    ("Value", "number", ".status.best.value", 0),
    ("Verdict", "string", ".status.best.verdict", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("GPU-Seconds", "integer", ".status.gpuSeconds", 1),
    ("Report", "string", ".status.reportURI", 1),
)
_JOB_RULES = [
    *build_name_rules(JOB_NAME_MAX_LENGTH, "pod names stay valid"),
    {  # a root rule, because it uses spec and status; before the condition, a Job of the old spec may exist
        "rule": "self.spec.compute == oldSelf.spec.compute || (oldSelf.spec.suspend "
        "&& has(oldSelf.status) && has(oldSelf.status.conditions) "
        "&& oldSelf.status.conditions.exists(c, c.type == 'Suspended' && c.status == 'True'))",
        "message": "compute can change only while suspended; set suspend to true and wait for the condition Suspended",
    },
]

JOB_DEFINITION = KindDefinition(
    model=FineTuneJob,
    kind=KIND,
    plural=PLURAL,
    short_name="ftj",
    columns=_JOB_COLUMNS,
    root_rules=_JOB_RULES,
    selectable_fields=(".status.phase", ".status.reason"),
)
SCHEDULE_DEFINITION = KindDefinition(
    model=FineTuneSchedule,
    kind=SCHEDULE_KIND,
    plural=SCHEDULE_PLURAL,
    short_name="fts",
    columns=_SCHEDULE_COLUMNS,
    root_rules=OWNER_NAME_RULES,
)
SWEEP_DEFINITION = KindDefinition(
    model=FineTuneSweep,
    kind=SWEEP_KIND,
    plural=SWEEP_PLURAL,
    short_name="ftsw",
    columns=_SWEEP_COLUMNS,
    root_rules=OWNER_NAME_RULES,
    selectable_fields=(".status.phase", ".status.reason"),
)
DEFINITIONS = (JOB_DEFINITION, SCHEDULE_DEFINITION, SWEEP_DEFINITION)

# `title` is redundant; pruning and strict field validation replace `additionalProperties: false`.
_DROPPED_KEYWORDS = frozenset({"title", "$defs", "additionalProperties", "patternProperties", "propertyNames", "const"})


class _OptionalIsAbsent(GenerateJsonSchema):
    """Schema generator that omits null: optional fields are absent, and `anyOf: [T, null]` is not structural."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def build_crd(definition: KindDefinition = JOB_DEFINITION) -> Schema:
    """Return the CRD of a kind as a dictionary."""
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_build_printer_column(*column) for column in definition.columns],
        "schema": {"openAPIV3Schema": build_root_schema(definition)},
    }
    if definition.selectable_fields:
        version["selectableFields"] = [{"jsonPath": path} for path in definition.selectable_fields]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{definition.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": definition.kind,
                "listKind": f"{definition.kind}List",
                "plural": definition.plural,
                "singular": definition.kind.lower(),
                "shortNames": [definition.short_name],
                "categories": ["finetune"],
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def build_root_schema(definition: KindDefinition = JOB_DEFINITION) -> Schema:
    """Return the structural schema of a kind."""
    generated = definition.model.model_json_schema(by_alias=True, schema_generator=_OptionalIsAbsent)
    schema = _to_structural_schema(generated, generated["$defs"])
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
        "x-kubernetes-validations": definition.root_rules,
    }


def _build_printer_column(name: str, column_type: str, path: str, priority: int) -> Schema:
    column: Schema = {"name": name, "type": column_type, "jsonPath": path}
    return {**column, "priority": priority} if priority else column


def _to_structural_schema(node: Schema, definitions: Schema) -> Schema:
    node = _inline_reference(node, definitions)
    schema = {key: value for key, value in node.items() if key not in _DROPPED_KEYWORDS}
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if "const" in node:
        schema["enum"] = [node["const"]]
    if "properties" in node:
        schema["properties"] = {
            name: _to_structural_schema(field, definitions) for name, field in node["properties"].items()
        }
    if "items" in node:
        schema["items"] = _to_structural_schema(node["items"], definitions)
    return _expand_default(_convert_exclusive_limits(_convert_map(schema, node, definitions)))


def _inline_reference(node: Schema, definitions: Schema) -> Schema:
    """Return the node with a `$ref` replaced by its target. Keys of the node itself take precedence."""
    if "$ref" not in node:
        return node
    target = _inline_reference(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


def _convert_map(schema: Schema, node: Schema, definitions: Schema) -> Schema:
    """Convert the schema of a `dict[K, V]`. Structural schemas can limit keys only with CEL rules."""
    patterns = node.get("patternProperties", {})
    value_schema = next(iter(patterns.values()), node.get("additionalProperties"))
    if not isinstance(value_schema, dict):
        return schema
    rules = [f"self.all(key, key.matches('{pattern}'))" for pattern in patterns]
    rules += [_build_key_rule(node["propertyNames"])] if "propertyNames" in node else []
    if rules:
        schema["x-kubernetes-validations"] = [{"rule": rule, "message": "a key is malformed"} for rule in rules]
    schema["additionalProperties"] = _to_structural_schema(value_schema, definitions)
    return schema


def _build_key_rule(key_schema: Schema) -> str:
    if "enum" in key_schema:
        return f"self.all(key, key in {key_schema['enum']})"
    return f"self.all(key, key.size() <= {key_schema['maxLength']})"


def _convert_exclusive_limits(schema: Schema) -> Schema:
    """Convert exclusive limits, which are flags in OpenAPI v3.0."""
    for exclusive, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            schema[limit], schema[exclusive] = schema[exclusive], True
    return schema


def _expand_default(schema: Schema) -> Schema:
    """Convert the default: objects in full and without nulls.

    CEL rules see the default of an object before its fields add their own.
    """
    default = schema.pop("default", None)
    if isinstance(default, dict):
        return {**schema, "default": _drop_nulls(default)}
    return schema if default is None else {**schema, "default": default}


def _drop_nulls(value: Schema) -> Schema:
    return {
        key: _drop_nulls(item) if isinstance(item, dict) else item for key, item in value.items() if item is not None
    }
