"""Reads the defaults of an installation from the Job of a run: users may not read the operator's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from finetune_operator.api import FineTuneJob, StorageSpec
from finetune_operator.api.labels import TRAINER_CONTAINER
from finetune_operator.api.objects import Body
from finetune_operator.policy.defaults import Defaults
from finetune_operator.resources.config_variables import read_config_variables
from finetune_trainer.contract import CONFIG_ENV, SecretRef, TrainerConfig

_CREDENTIALS_VOLUME, _CA_VOLUME = "s3-credentials", "ca"


def read_defaults(job: Body, finetunejob: FineTuneJob) -> Defaults:
    """Return what the operator has added to a run: access to the store, service account and image pull Secrets.

    Fields that the FineTuneJob sets itself are no defaults.
    """
    pod, spec = job["spec"]["template"]["spec"], finetunejob.spec
    defaults = Defaults()
    if not spec.storage.endpoint:
        defaults = defaults.model_copy(update={"storage": _read_storage(pod)})
    if not spec.compute.service_account_name:
        defaults = defaults.model_copy(update={"service_account_name": pod.get("serviceAccountName")})
    if not spec.compute.image_pull_secrets:
        secrets = [SecretRef(name=secret["name"]) for secret in pod.get("imagePullSecrets", [])]
        defaults = defaults.model_copy(update={"image_pull_secrets": secrets})
    return defaults


def find_trainer(pod: Mapping[str, Any]) -> Body:
    """Return the container of the trainer. Admission webhooks may have added others."""
    return next(dict(each) for each in pod["containers"] if each["name"] == TRAINER_CONTAINER)


def _read_storage(pod: Body) -> StorageSpec:
    try:
        config = TrainerConfig.model_validate_json(read_config_variables(CONFIG_ENV, find_trainer(pod)))
    except ValidationError:  # of another version
        return StorageSpec()
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    references: Body = {}
    if _CREDENTIALS_VOLUME in volumes:
        source = volumes[_CREDENTIALS_VOLUME]["projected"]["sources"][0]
        references["credentialsSecretRef"] = {"name": source["secret"]["name"]}
    if _CA_VOLUME in volumes:
        source = volumes[_CA_VOLUME]["configMap"]
        references["caConfigMapRef"] = {"name": source["name"], "key": source["items"][0]["key"]}
    return StorageSpec.model_validate(config.storage.to_json() | references)
