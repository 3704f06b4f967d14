"""Builder of the FineTuneJobs of a FineTuneSchedule or a FineTuneSweep."""

from __future__ import annotations

from typing import NamedTuple

from finetune_operator.api import API_VERSION, KIND, FineTuneJob, ObjectMeta
from finetune_operator.api.labels import KUEUE_LABELS, SCHEDULE_LABEL, SWEEP_LABEL
from finetune_operator.api.objects import Body
from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.api.sweep import SWEEP_KIND
from finetune_operator.api.template import TemplateMetadata
from finetune_operator.resources.owner import build_owner_reference

_OWNER_LABELS = {SCHEDULE_KIND: SCHEDULE_LABEL, SWEEP_KIND: SWEEP_LABEL}
_UNKNOWN_UID = "00000000-0000-0000-0000-000000000000"


class Owner(NamedTuple):
    """The FineTuneSchedule or the FineTuneSweep that owns FineTuneJobs."""

    kind: str
    meta: ObjectMeta
    template: TemplateMetadata
    """Metadata of its FineTuneJobs."""


def build_child(owner: Owner, name: str, spec: Body, annotations: dict[str, str] | None = None) -> Body:
    """Return a FineTuneJob of the owner. Kueue's labels of the owner apply if the template has none."""
    queue_labels = {key: value for key, value in owner.meta.labels.items() if key in KUEUE_LABELS}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": name,
            "namespace": owner.meta.namespace,
            "labels": {**queue_labels, **owner.template.labels, _OWNER_LABELS[owner.kind]: owner.meta.name},
            "annotations": {**owner.template.annotations, **(annotations or {})},
            "ownerReferences": [build_owner_reference(owner.meta, owner.kind)],
        },
        "spec": spec,
    }


def parse_child(child: Body) -> FineTuneJob:
    """Return a FineTuneJob that need not exist yet, to check it and to build task pods with its access to S3.

    Raises `pydantic.ValidationError` if the spec is not valid for this version.
    """
    meta = {"uid": _UNKNOWN_UID, **child["metadata"]}
    return FineTuneJob.model_validate({**child, "metadata": meta, "status": None})
