"""Reads objects of any kind by their path. Missing rights and missing objects are results, not errors of the client."""

from __future__ import annotations

from finetune_operator.client.api_server import ApiServer, Body, Collection, Request
from finetune_operator.client.errors import Forbidden, ObjectNotFound

_REVIEWS = Collection("/apis/authorization.k8s.io/v1", "selfsubjectaccessreviews")


class NotPermitted(Exception):
    """The user may not make this request."""


class ClusterReader:
    """Reads a cluster. Raises `ClientError` if the API server cannot be reached or fails."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def get(self, path: str, *, accept: str = "*/*", **query: str) -> Body | None:
        """Return an object, or None if it does not exist. Raises `NotPermitted`."""
        return self._send(Request("get", Collection(path), query=query, accept=accept))

    def list(self, path: str, **query: str) -> list[Body]:
        """Return the items of a list; none if the kind does not exist. Raises `NotPermitted`."""
        found = self.get(path, **query) or {}
        return [dict(item) for item in found.get("items") or []]

    def may(self, verb: str, resource: str, group: str = "", namespace: str = "", subresource: str = "") -> bool:
        """Return whether the user may do something, by a SelfSubjectAccessReview."""
        attributes = {"verb": verb, "resource": resource, "group": group, "namespace": namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, "subresource": subresource}},
        }
        answer = self._send(Request("create", _REVIEWS, body=review)) or {}
        return bool(answer.get("status", {}).get("allowed"))

    def _send(self, request: Request) -> Body | None:
        try:
            return self._server.send(request)
        except Forbidden as error:
            raise NotPermitted(str(error)) from None
        except ObjectNotFound:
            return None
