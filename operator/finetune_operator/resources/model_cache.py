"""Builder of the init container that fills the model cache, with everything else as the trainer has it."""

from __future__ import annotations

from finetune_operator.api import FineTuneJobSpec
from finetune_operator.api.labels import MODEL_CACHE_CONTAINER, VISIBLE_DEVICES_ENV
from finetune_operator.api.objects import Body
from finetune_operator.resources.volumes import MODEL_CACHE_DIR, get_cache_claim


def add_init_container(job: Body, spec: FineTuneJobSpec) -> Body:
    """Return the Job with the init container, or unchanged without a cache.

    It has the image, the Secrets and the limits of the trainer, and the variables and certificates of a compute
    profile, but no devices and no capabilities, and it alone can write to the claim.
    """
    if get_cache_claim(spec) is None:
        return job
    template = job["spec"]["template"]
    pod = {**template["spec"], "initContainers": [_build_init_container(template["spec"]["containers"][0])]}
    return {**job, "spec": {**job["spec"], "template": {**template, "spec": pod}}}


def _build_init_container(trainer: Body) -> Body:
    variables = [variable for variable in trainer["env"] if variable["name"] != VISIBLE_DEVICES_ENV]
    return {
        **{key: value for key, value in trainer.items() if key != "ports"},
        "name": MODEL_CACHE_CONTAINER,
        "args": ["cache", "fill"],
        "env": [*variables, {"name": VISIBLE_DEVICES_ENV, "value": "none"}],
        "resources": {kind: _remove_devices(trainer["resources"][kind]) for kind in ("requests", "limits")},
        "volumeMounts": [_allow_writes_to_cache(mount) for mount in trainer["volumeMounts"]],
        "securityContext": {**trainer["securityContext"], "capabilities": {"drop": ["ALL"]}},
    }


def _remove_devices(quantities: Body) -> Body:
    """Remove GPUs and other devices, whose names have a domain. They would be allocated twice."""
    return {name: quantity for name, quantity in quantities.items() if "/" not in name}


def _allow_writes_to_cache(mount: Body) -> Body:
    return {**mount, "readOnly": False} if mount["mountPath"] == MODEL_CACHE_DIR else mount
