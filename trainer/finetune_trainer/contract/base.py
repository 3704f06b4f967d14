"""The base of every API type, and the strings that several of them share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


def cel_rules(*rule_messages: tuple[str, str]) -> dict[str, Any]:
    """CEL rules for a model's schema, each a (rule, message) pair."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rule_messages]}


NO_PARENT = ("!self.uri.contains('/../') && !self.uri.endsWith('/..')", "uri must not contain '..'")
SHORT_IN_BYTES = ("bytes(self.uri).size() <= 1024", "uri must not be longer than 1024 bytes")
"""S3's own limit on keys; it also bounds the config, which travels in one environment variable."""


class Model(BaseModel):
    """Base of every API type: camelCase outside, unknown fields refused, never changed once made."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        allow_inf_nan=False,  # JSON has no words for them
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def to_json(self) -> dict[str, Any]:
        """The object as it is stored: camelCase, absent fields absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


S3Uri = Annotated[
    str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f\\]+$", max_length=1024)
]
ModelUri = Annotated[
    str,
    StringConstraints(
        pattern=(
            r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f\\]+"
            r"|hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
            r"|pvc://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/[^\x00-\x1f\\]*)?)$"
        ),
        max_length=1024,
    ),
]
Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things that every JSON parser keeps exact."""
ObjectName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", min_length=1, max_length=253)
]
"""Of a Kubernetes object."""
JOB_NAME_MAX_LENGTH = 52
"""Of a FineTuneJob's name: it leaves room for the suffixes of the pods' names within a DNS label."""
DNS_LABEL_PATTERN = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", min_length=1, max_length=128)]


class SecretRef(Model):
    """A Secret in the FineTuneJob's own namespace."""

    name: ObjectName
    """Name of the Secret."""
