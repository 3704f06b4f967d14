"""Typed access to the objects of one kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Generic, TypeVar

from finetune_operator.api import API_VERSION, FineTuneJob
from finetune_operator.api.schedule import FineTuneSchedule
from finetune_operator.api.sweep import FineTuneSweep
from finetune_operator.client.api_server import READ_TIMEOUT_SECONDS, ApiServer, Body, Collection, Request
from finetune_operator.client.errors import ClientError, ClusterUnavailable
from finetune_operator.client.parsing import parse_object
from finetune_trainer.text import to_one_line

KindT = TypeVar("KindT", bound=FineTuneJob | FineTuneSchedule | FineTuneSweep)


class Resource(Generic[KindT]):
    """The objects of one kind in the namespaces that the user may read.

    Methods without `namespace` use the client's namespace. All of them raise `ClientError`.
    """

    def __init__(self, server: ApiServer, kind: type[KindT], plural: str, namespace: str) -> None:
        self._server = server
        self._kind = kind
        self.plural = plural
        """Name of the resource in URLs and roles."""
        self._collection = Collection(f"/apis/{API_VERSION}", plural, namespace)

    def get(self, name: str) -> KindT:
        """Return an object. Raises `ObjectNotFound`."""
        return parse_object(self._kind, self.get_body(name))

    def get_body(self, name: str) -> Body:
        """Return an object as stored, with all its metadata. Raises `ObjectNotFound`."""
        return self._server.send(Request("get", self._collection, name))

    def list(
        self, *, all_namespaces: bool = False, label_selector: str = "", field_selector: str = ""
    ) -> Sequence[KindT]:
        """Return the objects, ordered by creation, the newest first."""
        bodies = self.list_bodies(
            all_namespaces=all_namespaces, label_selector=label_selector, field_selector=field_selector
        )
        return [parse_object(self._kind, body) for body in bodies]

    def list_bodies(
        self, *, all_namespaces: bool = False, label_selector: str = "", field_selector: str = ""
    ) -> Sequence[Body]:
        """Return the objects as stored, ordered by creation, the newest first."""
        collection = self._collection._replace(namespace="") if all_namespaces else self._collection
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        query = {name: selector for name, selector in selectors.items() if selector}
        items = self._server.send(Request("list", collection, query=query)).get("items") or []
        return sorted(items, key=lambda body: str(body["metadata"].get("creationTimestamp")), reverse=True)

    def create(self, body: Mapping[str, Any], *, dry_run: bool = False) -> KindT:
        """Create an object. Raises `ObjectExists` and `InvalidManifest`."""
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        return parse_object(self._kind, self._server.send(Request("create", self._collection, query=query, body=body)))

    def patch_spec(self, name: str, changes: Mapping[str, Any]) -> KindT:
        """Change fields of the spec by a merge patch; None removes a field. Raises `ObjectNotFound` and
        `InvalidManifest`."""
        request = Request(
            "patch", self._collection, name, query={"fieldValidation": "Strict"}, body={"spec": dict(changes)}
        )
        return parse_object(self._kind, self._server.send(request))

    def delete(self, name: str) -> None:
        """Delete an object. Raises `ObjectNotFound`."""
        self._server.send(Request("delete", self._collection, name))

    def watch(self, name: str, timeout_seconds: int) -> Iterator[KindT]:
        """Yield the object as it is, and again after each change, for at most `timeout_seconds`.

        The iterator may end earlier, as the API server closes watches; it ends when the object is deleted.
        """
        query = {"watch": "true", "fieldSelector": f"metadata.name={name}", "timeoutSeconds": str(timeout_seconds)}
        request = Request(
            "watch", self._collection, query=query, read_timeout_seconds=timeout_seconds + READ_TIMEOUT_SECONDS
        )
        for line in self._server.stream_lines(request):
            event = _parse_event(line)
            if event["type"] in ("DELETED", "ERROR"):
                return
            yield parse_object(self._kind, event["object"])


def _parse_event(line: bytes) -> Body:
    """Parse an event of a watch. Raises for an error, except that the watch has expired."""
    try:
        event: Body = json.loads(line)
        event_type, body = event["type"], event["object"]
    except (ValueError, KeyError, TypeError):
        raise ClusterUnavailable("the API server has sent an incomplete event of a watch; try again") from None
    if event_type == "ERROR" and body.get("code") != HTTPStatus.GONE:
        message = f"the API server has ended a watch: {to_one_line(str(body.get('message', '')))}"
        is_temporary = int(body.get("code") or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR
        raise ClusterUnavailable(message) if is_temporary else ClientError(message)
    return event
