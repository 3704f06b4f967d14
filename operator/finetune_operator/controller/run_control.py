"""Creates, changes and deletes the FineTuneJobs of a FineTuneSchedule or a FineTuneSweep."""

from __future__ import annotations

import logging
from enum import Enum
from typing import NamedTuple

from pydantic import ValidationError

from finetune_operator.api.objects import Body
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.transport import ApiError
from finetune_operator.observed.objects import get_controller_ref, get_name, is_controlled_by
from finetune_operator.policy.validation import find_violations
from finetune_operator.resources.child import parse_child
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)

REFUSED_STATUSES = (400, 403, 422)
"""Statuses of an object that the API server, a quota, a policy or a webhook refuses."""
_PATCHED_FIELDS = frozenset({"suspend", "suspendAtStep", "cancel", "budget"})
"""The only fields that the owner of a FineTuneJob changes."""


class RefusalKind(Enum):
    """Why a FineTuneJob is not created."""

    INVALID = "invalid"  # the spec is not valid for this version of the operator
    NOT_ALLOWED = "notAllowed"  # the bounds of the installation do not allow it
    REFUSED = "refused"  # the API server refuses it
    NAME_CONFLICT = "nameConflict"  # a FineTuneJob of that name has another owner


class Refusal(NamedTuple):
    """Why a FineTuneJob is not created, in a sentence that names the fields."""

    kind: RefusalKind
    message: str
    status: int | None = None
    """The HTTP status of the API server, if it has refused the object."""


class RunControl:
    """Writes the FineTuneJobs of their owners. All methods may raise `ApiError` or one of `CONNECTION_ERRORS`."""

    def __init__(self, client: KubeClient, settings: Settings, profile_store: ProfileStore) -> None:
        self._client = client
        self._settings = settings
        self._profile_store = profile_store

    def check(self, child: Body) -> Refusal | None:
        """Return why this version or the bounds of the installation do not allow a FineTuneJob, or None."""
        try:
            finetunejob = parse_child(child)
        except ValidationError as error:
            first = error.errors()[0]
            return Refusal(RefusalKind.INVALID, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        violations = find_violations(finetunejob, self._settings, self._profile_store.read())
        return Refusal(RefusalKind.NOT_ALLOWED, " ".join(violations)) if violations else None

    async def try_create(self, child: Body) -> Refusal | None:
        """Ask the API server whether it would create a FineTuneJob. Return why not, or None."""
        if refusal := self.check(child):
            return refusal
        created = await self._create(child, dry_run=True)
        return created if isinstance(created, Refusal) else None

    async def create(self, child: Body) -> Body | Refusal:
        """Create a FineTuneJob, or return the existing one of the same owner, or why there is none."""
        if refusal := self.check(child):
            return refusal
        created = await self._create(child, dry_run=False)
        if not isinstance(created, Refusal):
            log.info("created the FineTuneJob %s", get_name(created))
        return created

    async def read(self, namespace: str, name: str) -> Body | None:
        """Return the stored FineTuneJob with its result, or None."""
        return await self._client.read_finetunejob(namespace, name)

    async def patch(self, child: Body, spec_patch: Body) -> Body:
        """Change a FineTuneJob. Raises `ValueError` for fields that an owner must not change."""
        if not spec_patch.keys() <= _PATCHED_FIELDS:
            raise ValueError(f"an owner must not change {sorted(spec_patch.keys() - _PATCHED_FIELDS)}")
        return await self._client.patch_finetunejob(child, spec_patch)

    async def delete(self, child: Body) -> None:
        """Delete a FineTuneJob that has ended. Its result in S3 stays."""
        await self._client.delete_finetunejob(child)

    async def _create(self, child: Body, *, dry_run: bool) -> Body | Refusal:
        try:
            return await self._client.create_finetunejob(child, dry_run=dry_run)
        except ApiError as error:
            if error.status == 409:
                return await self._find_existing(child)
            if error.status not in REFUSED_STATUSES:
                raise
            return Refusal(RefusalKind.REFUSED, error.message, error.status)

    async def _find_existing(self, child: Body) -> Body | Refusal:
        meta, owner_uid = child["metadata"], get_controller_ref(child)["uid"]
        existing = await self._client.read_finetunejob(meta["namespace"], meta["name"])
        if existing and is_controlled_by(existing, owner_uid):
            return existing
        message = f"There is a FineTuneJob {meta['name']} that does not belong to this object; delete or rename one."
        return Refusal(RefusalKind.NAME_CONFLICT, message)
