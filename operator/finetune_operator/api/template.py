"""The template of the FineTuneJobs that a FineTuneSchedule or a FineTuneSweep creates."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_operator.api.compute import LabelValue, QualifiedName
from finetune_operator.api.spec import GROUP, RunSpec
from finetune_trainer.contract import DNS_LABEL_PATTERN, UNIQUE_OUTPUT_RULE, Model, cel_rules

OWNER_NAME_MAX_LENGTH = 40
"""Maximum length of the name of a FineTuneSchedule or a FineTuneSweep: names of FineTuneJobs are its name, a hyphen and
up to eleven digits."""


def build_name_rules(max_length: int, purpose: str) -> list[dict[str, str]]:
    """Return the rules on the name of an object, at the root of its schema. `purpose` is why its length is limited."""
    return [
        {
            "rule": f"self.metadata.name.size() <= {max_length}",
            "message": f"metadata.name must be at most {max_length} characters, so that {purpose}",
        },
        {
            "rule": f"self.metadata.name.matches('{DNS_LABEL_PATTERN}')",
            "message": "metadata.name must be a DNS label: a-z, 0-9 and '-', no dots",
        },
    ]


OWNER_NAME_RULES = build_name_rules(OWNER_NAME_MAX_LENGTH, "names of its FineTuneJobs and pods stay valid")
"""Rules on the root of a FineTuneSchedule and a FineTuneSweep."""
NO_TEST_METRIC = (
    "!self.metric.startsWith('test')",
    "metric must be one of the validation data: the metrics of evaluation.test must not choose a model",
)
"""Rule on an object whose `metric` decides between FineTuneJobs."""


def _build_key_rule(field: str) -> tuple[str, str]:
    rule = f"self.{field}.all(key, !key.matches('^([a-z0-9.-]*[.])?{GROUP.replace('.', '[.]')}/'))"
    return rule, f"{field}: keys of {GROUP} are reserved for the operator"


class TemplateMetadata(Model):
    """TemplateMetadata is the metadata of the FineTuneJobs."""

    model_config = ConfigDict(json_schema_extra=cel_rules(_build_key_rule("labels"), _build_key_rule("annotations")))

    labels: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """labels are labels of the FineTuneJobs. Kueue's labels are copied from the owner if they are not set here."""
    annotations: dict[QualifiedName, Annotated[str, StringConstraints(max_length=1024)]] = Field(
        default={}, max_length=32
    )
    """annotations are annotations of the FineTuneJobs."""


class RunTemplate(Model):
    """RunTemplate is the template of FineTuneJobs: their metadata and spec."""

    model_config = ConfigDict(json_schema_extra=cel_rules(UNIQUE_OUTPUT_RULE))

    metadata: TemplateMetadata = TemplateMetadata()
    """metadata is the metadata of the FineTuneJobs."""
    spec: RunSpec
    """spec is the spec of the FineTuneJobs. `output.uri` must contain `{name}`."""
