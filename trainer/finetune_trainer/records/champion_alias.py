"""The alias of a FineTuneSchedule: one JSON object in S3 that names the champion, for programs that serve it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from finetune_trainer.contract import Model, ObjectName, PromoteTask, ResultDigest

_ShortText = Annotated[str, StringConstraints(max_length=320)]
_AdapterUri = Annotated[
    str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f]+$", max_length=1100)
]


class _LenientModel(Model):
    """Base class that ignores unknown fields, because a newer version may have written the alias."""

    model_config = ConfigDict(extra="ignore")


class AliasedResult(_LenientModel):
    """A published result as an alias names it."""

    run: ObjectName
    """Name of the FineTuneJob that published the result."""
    adapter_uri: _AdapterUri = Field(alias="adapterURI")
    """S3 prefix of the adapter."""
    digest: ResultDigest
    """Digest of its `manifest.json`."""

    def is_same_result(self, other: AliasedResult) -> bool:
        """Return whether both name the same files, whatever the run is called."""
        return (self.adapter_uri.rstrip("/"), self.digest) == (other.adapter_uri.rstrip("/"), other.digest)


class EnvelopeSignature(_LenientModel):
    """A signature of an envelope."""

    keyid: str
    """Identifies the key, as securesystemslib computes it from the public key."""
    sig: str
    """The signature in Base64: ECDSA in DER."""


class AliasEnvelope(_LenientModel):
    """DSSE envelope over the canonical JSON of an alias without its signature: https://github.com/secure-systems-lab/dsse"""

    payload: str
    """The canonical JSON in Base64."""
    payload_type: Literal["application/vnd.finetune.champion+json"] = "application/vnd.finetune.champion+json"
    signatures: list[EnvelopeSignature] = Field(min_length=1, max_length=8)


class ChampionAlias(AliasedResult):
    """Content of the alias. The fields of `AliasedResult` are those of the champion."""

    api_version: Literal["finetune.dev/v1alpha1"]
    kind: Literal["ChampionAlias"]
    schedule: _ShortText
    """`namespace/name` of the FineTuneSchedule."""
    metrics: dict[str, float] = Field(default={})
    """Metrics of the champion."""
    promoted_time: str
    """Time of the promotion (RFC 3339)."""
    predecessor: AliasedResult | None = None
    """The champion before this one, if any."""
    signature: AliasEnvelope | None = None
    """Signature of all other fields, if the alias is signed."""

    @classmethod
    def from_task(cls, task: PromoteTask) -> ChampionAlias:
        """Return the alias that a task is to write, without a signature."""
        content = {
            **task.champion.to_json(),
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "ChampionAlias",
            "schedule": task.schedule,
            "metrics": task.metrics,
            "promotedTime": task.promoted_time,
            "predecessor": task.predecessor and task.predecessor.to_json(),
        }
        return cls.model_validate(content)

    def to_payload(self) -> bytes:
        """Return the canonical JSON of all fields but the signature: sorted keys, no spaces, UTF-8."""
        content = self.model_copy(update={"signature": None}).to_json()
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def to_bytes(self) -> bytes:
        """Return the alias as it is stored: JSON in UTF-8, which begins with what it is."""
        content = self.to_json()
        head = {name: content[name] for name in ("apiVersion", "kind", "schedule")}
        return (json.dumps(head | content, indent=2, ensure_ascii=False) + "\n").encode()


class _AnyObject(_LenientModel):
    kind: Annotated[str, StringConstraints(max_length=64)]


def describe_content(content: bytes) -> str:
    """Say in a few words what an object that should be an alias contains."""
    with suppress(ValidationError):
        alias = ChampionAlias.model_validate_json(content)
        return f"the alias of the schedule {alias.schedule} for the run {alias.run}"
    try:
        return f"an object of kind {_AnyObject.model_validate_json(content).kind!r} that is no valid ChampionAlias"
    except ValidationError:
        return "no JSON object with a kind"
