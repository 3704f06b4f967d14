"""Builder of the init container that fills the model cache, with everything else as the trainer has it."""

from __future__ import annotations

from finetune_operator.api import FineTuneJobSpec
from finetune_operator.api.labels import MODEL_CACHE_CONTAINER
from finetune_operator.api.objects import Body
from finetune_operator.resources.volumes import MODEL_CACHE_DIR, get_cache_claim


def build_init_containers(spec: FineTuneJobSpec, trainer_container: Body) -> list[Body]:
    """Return the init container, or nothing without a cache.

    It has the image, the Secrets and the limits of the trainer, but no devices, and it alone can write to the claim.
    """
    if get_cache_claim(spec) is None:
        return []
    container = {key: value for key, value in trainer_container.items() if key != "ports"}
    resources = trainer_container["resources"]
    return [
        {
            **container,
            "name": MODEL_CACHE_CONTAINER,
            "args": ["cache", "fill"],
            "env": [*trainer_container["env"], {"name": "NVIDIA_VISIBLE_DEVICES", "value": "none"}],
            "resources": {kind: _remove_devices(resources[kind]) for kind in resources},
            "volumeMounts": [_allow_writes_to_cache(mount) for mount in trainer_container["volumeMounts"]],
        }
    ]


def _remove_devices(quantities: Body) -> Body:
    """Remove GPUs and other devices, whose names have a domain. They would be allocated twice."""
    return {name: quantity for name, quantity in quantities.items() if "/" not in name}


def _allow_writes_to_cache(mount: Body) -> Body:
    return {**mount, "readOnly": False} if mount["mountPath"] == MODEL_CACHE_DIR else mount
