"""Base class of all API types, and string types that several of them share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


def cel_rules(*rule_messages: tuple[str, str]) -> dict[str, Any]:
    """Return a schema extension with CEL validation rules, each given as a (rule, message) pair."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rule_messages]}


NO_PARENT = ("!self.uri.contains('/../') && !self.uri.endsWith('/..')", "uri must not contain '..'")
SHORT_IN_BYTES = ("bytes(self.uri).size() <= 1024", "uri must not be longer than 1024 bytes")
"""S3's own limit on the length of keys. It also limits the size of the config, which is passed in one environment
variable."""


class Model(BaseModel):
    """Base class of all API types: camelCase in JSON, unknown fields rejected, instances immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        allow_inf_nan=False,  # JSON cannot represent NaN and infinity
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def to_json(self) -> dict[str, Any]:
        """Return the object as it is stored: camelCase names, unset fields omitted."""
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
DataUri = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\\]+$", min_length=1, max_length=1024)]
"""URI of data. `DATA_URI_RULE` says which ones are accepted."""
DATA_URI_RULE = (
    "self.uri.matches('^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.+"
    "|hf://datasets/[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[^/@]+)?(/.*)?"
    "|pvc://[a-z0-9]([a-z0-9.-]*[a-z0-9])?/.+"
    "|file:///.+)$')",
    "uri must be s3://bucket/key, hf://datasets/OWNER/NAME[@REVISION][/path] or pvc://claim/path",
)
Count = Annotated[int, Field(ge=0, le=2**53)]
"""A non-negative integer that every JSON parser represents exactly."""
ObjectName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", min_length=1, max_length=253)
]
"""Name of a Kubernetes object."""
JOB_NAME_MAX_LENGTH = 52
"""Maximum length of a FineTuneJob's name. With the suffixes of its pods' names it still fits into a DNS label."""
DNS_LABEL_PATTERN = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", min_length=1, max_length=128)]


class SecretRef(Model):
    """SecretRef is a reference to a Secret in the namespace of the FineTuneJob."""

    name: ObjectName
    """name is the name of the Secret."""
