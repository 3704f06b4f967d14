"""Typed access to the objects of one kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from kubernetes import watch
from kubernetes.client import CustomObjectsApi

from finetune_operator.api import GROUP, VERSION, FineTuneJob
from finetune_operator.api.schedule import FineTuneSchedule
from finetune_operator.api.sweep import FineTuneSweep
from finetune_operator.client.api_errors import translate_api_errors
from finetune_operator.client.parsing import parse_object

KindT = TypeVar("KindT", bound=FineTuneJob | FineTuneSchedule | FineTuneSweep)
Body = dict[str, Any]
REQUEST_TIMEOUT_SECONDS = (5, 30)
"""Limits of the connection and of the response."""


class Resource(Generic[KindT]):
    """The objects of one kind in the namespaces that the user may read.

    Methods without `namespace` use the client's namespace. All of them raise `ClientError`.
    """

    def __init__(self, api: CustomObjectsApi, kind: type[KindT], plural: str, namespace: str) -> None:
        self._api = api
        self._kind = kind
        self.plural = plural
        """Name of the resource in URLs and roles."""
        self._namespace = namespace

    def get(self, name: str) -> KindT:
        """Return an object. Raises `ObjectNotFound`."""
        return parse_object(self._kind, self.get_body(name))

    def get_body(self, name: str) -> Body:
        """Return an object as stored, with all its metadata. Raises `ObjectNotFound`."""
        with self._translate_errors("get", name):
            body: Any = self._api.get_namespaced_custom_object(
                GROUP, VERSION, self._namespace, self.plural, name, _request_timeout=REQUEST_TIMEOUT_SECONDS
            )
        return dict(body)

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
        options: dict[str, Any] = {
            "label_selector": label_selector,
            "field_selector": field_selector,
            "_request_timeout": REQUEST_TIMEOUT_SECONDS,
        }
        with self._translate_errors("list"):
            if all_namespaces:
                answer: Any = self._api.list_cluster_custom_object(GROUP, VERSION, self.plural, **options)
            else:
                answer = self._api.list_namespaced_custom_object(
                    GROUP, VERSION, self._namespace, self.plural, **options
                )
        return sorted(answer["items"], key=lambda body: str(body["metadata"]["creationTimestamp"]), reverse=True)

    def create(self, body: Mapping[str, Any], *, dry_run: bool = False) -> KindT:
        """Create an object. Raises `ObjectExists` and `InvalidManifest`."""
        options: dict[str, Any] = {"dry_run": "All"} if dry_run else {}
        name = str(body.get("metadata", {}).get("name", ""))
        with self._translate_errors("create", name):
            created: Any = self._api.create_namespaced_custom_object(
                GROUP,
                VERSION,
                self._namespace,
                self.plural,
                dict(body),
                field_validation="Strict",
                _request_timeout=REQUEST_TIMEOUT_SECONDS,
                **options,
            )
        return parse_object(self._kind, created)

    def patch_spec(self, name: str, changes: Mapping[str, Any]) -> KindT:
        """Change fields of the spec by a merge patch; None removes a field. Raises `ObjectNotFound` and
        `InvalidManifest`."""
        with self._translate_errors("patch", name):
            patched: Any = self._api.patch_namespaced_custom_object(
                GROUP,
                VERSION,
                self._namespace,
                self.plural,
                name,
                {"spec": dict(changes)},
                field_validation="Strict",
                _request_timeout=REQUEST_TIMEOUT_SECONDS,
                _content_type="application/merge-patch+json",
            )
        return parse_object(self._kind, patched)

    def delete(self, name: str) -> None:
        """Delete an object. Raises `ObjectNotFound`."""
        with self._translate_errors("delete", name):
            self._api.delete_namespaced_custom_object(
                GROUP, VERSION, self._namespace, self.plural, name, _request_timeout=REQUEST_TIMEOUT_SECONDS
            )

    def watch(self, name: str, timeout_seconds: int) -> Iterator[KindT]:
        """Yield the object as it is, and again after each change, for at most `timeout_seconds`.

        The iterator may end earlier, as the API server closes watches; it ends when the object is deleted.
        """
        with self._translate_errors("watch", name):
            events = watch.Watch().stream(
                self._api.list_namespaced_custom_object,
                GROUP,
                VERSION,
                self._namespace,
                self.plural,
                field_selector=f"metadata.name={name}",
                timeout_seconds=timeout_seconds,
            )
            for event in events:
                if event["type"] == "DELETED":
                    return
                yield parse_object(self._kind, event["object"])

    def _translate_errors(self, verb: str, name: str = "") -> AbstractContextManager[None]:
        return translate_api_errors(verb, self.plural, self._namespace, name)
