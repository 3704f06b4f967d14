"""Base class of all API types, and string types that several of them share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

CelRule = tuple[str, str] | tuple[str, str, str]
"""A CEL rule, its message, and optionally a CEL expression for a message with the value."""
_RULE_KEYS = ("rule", "message", "messageExpression")


def cel_rules(*rules: CelRule) -> dict[str, Any]:
    """Return a schema extension with CEL validation rules."""
    return {"x-kubernetes-validations": [dict(zip(_RULE_KEYS, rule, strict=False)) for rule in rules]}


NO_PARENT = ("!self.uri.contains('/../') && !self.uri.endsWith('/..')", "uri must not contain '..'")
SHORT_IN_BYTES = ("bytes(self.uri).size() <= 1024", "uri must not be longer than 1024 bytes")
"""S3's own limit on the length of keys. It also limits the size of the config."""


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


Uri = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]+$", min_length=1, max_length=1024)]
"""A URI. CEL rules say which ones a field accepts, in a sentence rather than a pattern."""
_S3_PATTERN = "s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.+"
_CLAIM_PATTERN = "pvc://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/.*)?"
_HUB_NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_IS_HUB_PAGE = "self.uri.startsWith('https://huggingface.co/')"


def uri_text_rule(field: str, *, is_optional: bool = False) -> CelRule:
    """Return the rule that a field has no backslashes, and no spaces around it, which are easily overlooked."""
    value = f"self.{field}"
    rule = f"!{value}.contains('\\\\') && !{value}.startsWith(' ') && !{value}.endsWith(' ')"
    message = f"{field} must not contain backslashes, or a space at its start or end; folders are separated by '/'"
    return (f"!has({value}) || ({rule})" if is_optional else rule), message


def s3_uri_rule(field: str, *, is_optional: bool = False) -> CelRule:
    """Return the rule that a field is an S3 URI."""
    rule = f"self.{field}.matches('^{_S3_PATTERN}$')"
    message = (
        f"{field} must be s3://bucket/prefix with a bucket name of a-z, 0-9, '.' and '-'; set storage.endpoint for "
        "stores other than AWS S3"
    )
    return (f"!has(self.{field}) || {rule}" if is_optional else rule), message


_MODEL_URI_MESSAGE = (
    "uri must be hf://ORGANIZATION/NAME, s3://bucket/prefix or pvc://claim/path; bucket and claim have only a-z, "
    "0-9, '.' and '-', and local folders, such as ./model, are read only without a cluster"
)
_DATA_URI_MESSAGE = (
    "uri must be s3://bucket/key, hf://datasets/OWNER/NAME[@REVISION][/path] or pvc://claim/path; bucket and claim "
    "have only a-z, 0-9, '.' and '-', and local files are read only without a cluster"
)
MODEL_URI_RULES: tuple[CelRule, ...] = (
    uri_text_rule("uri"),
    (
        f"!self.uri.matches('^{_HUB_NAME_PATTERN}$')",
        "uri has no scheme: a model of the Hugging Face hub is hf://ORGANIZATION/NAME",
        "'uri has no scheme: use hf://' + self.uri + ' for the model of the Hugging Face hub'",
    ),
    (
        f"!self.uri.startsWith('hf://') || self.uri.matches('^hf://{_HUB_NAME_PATTERN}$')",
        "a model of the Hugging Face hub is hf://ORGANIZATION/NAME; set its branch, tag or commit in revision",
    ),
    (
        f"self.uri.startsWith('hf://') || self.uri.matches('^({_HUB_NAME_PATTERN}|{_S3_PATTERN}|{_CLAIM_PATTERN}"
        "|file:///.+)$')",
        _MODEL_URI_MESSAGE,
        f"{_IS_HUB_PAGE} ? 'a model of the Hugging Face hub is hf://ORGANIZATION/NAME, not the address of its page' : "
        f'"{_MODEL_URI_MESSAGE}"',
    ),
)
DATA_URI_RULES: tuple[CelRule, ...] = (
    uri_text_rule("uri"),
    (
        "!self.uri.startsWith('hf://') || self.uri.startsWith('hf://datasets/')",
        "a dataset of the Hugging Face hub is hf://datasets/OWNER/NAME; hf://OWNER/NAME is a model",
    ),
    (
        "(self.uri.startsWith('hf://') && !self.uri.startsWith('hf://datasets/')) || "
        f"self.uri.matches('^({_S3_PATTERN}|hf://datasets/{_HUB_NAME_PATTERN}(@[^/@]+)?(/.*)?|{_CLAIM_PATTERN}"
        "|file:///.+)$')",
        _DATA_URI_MESSAGE,
        f"{_IS_HUB_PAGE} ? 'a dataset of the Hugging Face hub is hf://datasets/OWNER/NAME, not the address of its page'"
        f' : "{_DATA_URI_MESSAGE}"',
    ),
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
