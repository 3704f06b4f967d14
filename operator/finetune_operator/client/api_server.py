"""Requests to the API server: JSON bodies, watches and logs. Only authentication, TLS and proxies are the official
client's, because its models take long to import and reject what a newer API server returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from pydantic import TypeAdapter

from finetune_operator.client.api_errors import RequestFailed, Target, translate_api_errors

if TYPE_CHECKING:
    from kubernetes.client import ApiClient
    from urllib3 import BaseHTTPResponse

Body = dict[str, Any]
CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 30
_JSON, _MERGE_PATCH = "application/json", "application/merge-patch+json"


class Collection(NamedTuple):
    """The objects of one resource in a namespace, or in all of them if it is empty."""

    api: str
    """Path of the API group: `/api/v1`, `/apis/finetune.dev/v1alpha1`."""
    plural: str = ""
    """Name of the resource; empty for `api` as a complete path."""
    namespace: str = ""

    def build_path(self, name: str = "", subresource: str = "") -> str:
        """Return the path of the collection, of an object, or of its subresource."""
        parts = [self.plural, name, subresource]
        if self.namespace:
            parts = ["namespaces", self.namespace, *parts]
        return "/".join([self.api, *(quote(part, safe="") for part in parts if part)])


@dataclass(frozen=True)
class Request:
    """A request for a collection, an object or a subresource."""

    verb: str
    """Verb of the right that it needs."""
    collection: Collection
    name: str = ""
    subresource: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS
    accept: str = "*/*"


_OBJECT = TypeAdapter(Body)
_METHODS = {"create": "POST", "patch": "PATCH", "delete": "DELETE"}


class ApiServer:
    """An API server. All methods raise `ClientError`."""

    def __init__(self, api_client: ApiClient) -> None:
        self.api_client = api_client
        """The official client, which alone can forward ports."""

    def send(self, request: Request) -> Body:
        """Return the JSON object that answers a request."""
        with self._translate_errors(request), closing(self._open(request)) as response:
            return _OBJECT.validate_json(response.data)

    def stream_lines(self, request: Request) -> Iterator[bytes]:
        """Yield the lines of an answer as they arrive, without their line breaks."""
        with self._translate_errors(request), closing(self._open(request)) as response:
            rest = b""
            for chunk in response.stream(amt=None):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
            if rest:
                yield rest

    def _open(self, request: Request) -> BaseHTTPResponse:
        path = request.collection.build_path(request.name, request.subresource)
        content_type = _MERGE_PATCH if request.verb == "patch" else _JSON
        arguments = self.api_client.param_serialize(
            _METHODS.get(request.verb, "GET"),
            path,
            query_params=list(request.query.items()),
            header_params={"Accept": request.accept, "Content-Type": content_type},
            body=request.body,
            auth_settings=["BearerToken"],
        )
        timeout = (CONNECT_TIMEOUT_SECONDS, request.read_timeout_seconds)
        response: BaseHTTPResponse = self.api_client.call_api(*arguments, _request_timeout=timeout).response
        if not 200 <= response.status < 300:
            with closing(response):
                raise RequestFailed(response.status, response.data.decode(errors="replace"))
        return response

    def _translate_errors(self, request: Request) -> AbstractContextManager[None]:
        resource = "/".join(filter(None, [request.collection.plural or request.collection.api, request.subresource]))
        target = Target(request.verb, resource, request.collection.namespace, request.name)
        return translate_api_errors(target, self.api_client.configuration.host)
