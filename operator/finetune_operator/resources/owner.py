"""The reference to the object that owns another one."""

from __future__ import annotations

from finetune_operator.api import API_VERSION, KIND, ObjectMeta
from finetune_operator.api.objects import Body


def build_owner_reference(meta: ObjectMeta, kind: str = KIND) -> Body:
    """Return the owner reference of an object that is deleted with its FineTuneJob, or with an object of another
    kind."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
