"""Follow which namespaces have the labels that an administrator has selected.

The namespaces are listed every few seconds instead of watched: the response contains only the selected ones, and a list
misses neither a label that was removed nor a namespace that was deleted and created again.
"""

from __future__ import annotations

import logging

from finetune_operator.kube import transform
from finetune_operator.kube.client import ApiResource, KubeClient
from finetune_operator.kube.namespace_access import NamespaceRegistry, Scope
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError

log = logging.getLogger(__name__)


class NamespaceSelector:
    """Keeps the registry of namespaces equal to those with the selected labels."""

    def __init__(self, client: KubeClient, selector: str, namespaces: NamespaceRegistry) -> None:
        self._client = client
        self._resource = ApiResource("", "v1", "namespaces", selector)
        self._namespaces = namespaces
        self._is_failing = False

    async def update(self) -> set[Scope]:
        """Return the namespaces that are selected since the last call. Raises `ApiError` or `CONNECTION_ERRORS`."""
        listed = await self._client.list_objects(self._resource, None)
        selected_names = {str(transform.decode_head(raw)["metadata"]["name"]) for raw in listed.items}
        removed_names = set(self._namespaces.get_names()) - selected_names
        added_names = self._namespaces.replace_names(selected_names)
        for name in sorted(removed_names):
            log.info("namespace %s was deleted or has lost the selected labels, and is left alone", name)
        if added_names:
            log.info("watching %d more namespaces with the selected labels", len(added_names))
        return added_names

    async def try_update(self) -> set[Scope] | None:
        """Do the same as `update`, but return None if the list fails. The first of several failures is logged."""
        try:
            added_names = await self.update()
        except (ApiError, *CONNECTION_ERRORS) as error:
            if not self._is_failing:
                log.warning("failed to list namespaces, keeping the known ones: %s: %s", type(error).__name__, error)
            self._is_failing = True
            return None
        self._is_failing = False
        return added_names
