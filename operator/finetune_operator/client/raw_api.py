"""Requests for objects of any kind, as JSON. Missing rights and missing objects are results, not errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from kubernetes.client import ApiClient, ApiException

from finetune_operator.client.api_errors import RequestFailed, Target, translate_api_errors

_REQUEST_TIMEOUT_SECONDS = (5, 30)
Body = dict[str, Any]


@contextmanager
def translate_official_errors(api_client: ApiClient, target: Target) -> Iterator[None]:
    """Raise the matching `ClientError` for an error of the official client."""
    with translate_api_errors(target, str(api_client.configuration.host)):
        try:
            yield
        except ApiException as error:
            raise RequestFailed(error.status or 0, str(error.body or error.reason)) from None


class NotPermitted(Exception):
    """The user may not make this request."""


class RawApi:
    """Requests by path. Raises `ClientError` if the API server cannot be reached or fails."""

    def __init__(self, api_client: ApiClient) -> None:
        self._api_client = api_client

    def get(self, path: str, *, accept: str = "application/json", **query: str) -> Body | None:
        """Return an object, or None if it does not exist. Raises `NotPermitted`."""
        return self._send("GET", path, None, accept, query)

    def list(self, path: str, **query: str) -> list[Body]:
        """Return the items of a list; none if the kind does not exist. Raises `NotPermitted`."""
        found = self.get(path, **query) or {}
        return [dict(item) for item in found.get("items", [])]

    def may(self, verb: str, resource: str, group: str = "", namespace: str = "", subresource: str = "") -> bool:
        """Return whether the user may do something, by a SelfSubjectAccessReview."""
        attributes = {"verb": verb, "resource": resource, "group": group, "namespace": namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, "subresource": subresource}},
        }
        answer = self._send("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review) or {}
        return bool(answer.get("status", {}).get("allowed"))

    def _send(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        accept: str = "application/json",
        query: dict[str, str] | None = None,
    ) -> Body | None:
        headers = {"Accept": accept, "Content-Type": "application/json"}
        request = self._api_client.param_serialize(
            method, path, query_params=[*(query or {}).items()], header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        with translate_official_errors(self._api_client, Target(method.lower(), path, "")):
            response = self._api_client.call_api(*request, _request_timeout=_REQUEST_TIMEOUT_SECONDS)
            text = response.read()
            if response.status == HTTPStatus.FORBIDDEN:
                raise NotPermitted(path)
            if response.status == HTTPStatus.NOT_FOUND:
                return None
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise ApiException(status=response.status, reason=response.reason, body=text.decode(errors="replace"))
        result: Body = json.loads(text)
        return result
