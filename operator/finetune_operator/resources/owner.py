"""The reference to the FineTuneJob that owns an object."""

from __future__ import annotations

from finetune_operator.api import API_VERSION, KIND, ObjectMeta
from finetune_operator.api.objects import Body


def build_owner_reference(meta: ObjectMeta) -> Body:
    """Return the owner reference of an object that is deleted with its FineTuneJob."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
