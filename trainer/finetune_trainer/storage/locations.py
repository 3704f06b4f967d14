"""S3 URIs: bucket and key, wildcards, and the local names that keys may become."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Self
from urllib.parse import unquote

_WILDCARD = re.compile(r"[*?]")
_GLOB_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")
_GLOB_REGEX = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_MIN_NAME_SIMILARITY = 0.9
_MAX_NAME_BYTES = 255  # bytes of one path component on Linux


@dataclass(frozen=True)
class Location:
    """A bucket and a key (or a prefix, or a pattern of keys)."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Split `s3://bucket/key`, which the patterns of the contract have validated."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return cls(bucket, key)

    @classmethod
    def parse_folder(cls, uri: str) -> Self:
        """Parse a URI as a prefix: `s3://bucket/a` and `s3://bucket/a/` both mean `a/…`."""
        return cls.parse(uri.rstrip("/") + "/")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def child(self, name: str) -> Location:
        """Return the location of `name` below this prefix."""
        return Location(self.bucket, self.key + name)

    @property
    def is_pattern(self) -> bool:
        """Whether the key has `*` or `?`."""
        return _WILDCARD.search(self.key) is not None

    @property
    def is_single(self) -> bool:
        """Whether the URI names exactly one object."""
        return not self.is_pattern and not self.key.endswith("/")

    @property
    def base_prefix(self) -> str:
        """The part of the key that all matches share, up to and including its last `/`."""
        literal_prefix = _WILDCARD.split(self.key, maxsplit=1)[0]
        return literal_prefix[: literal_prefix.rfind("/") + 1]

    @property
    def list_prefix(self) -> str:
        """The prefix to list: everything before the first wildcard."""
        return _WILDCARD.split(self.key, maxsplit=1)[0]

    def matches(self, key: str) -> bool:
        """Return whether a listed key matches. `*` and `?` match within a folder, `**` matches across folders."""
        if not self.is_pattern:
            return key.startswith(self.key)
        parts = (_GLOB_REGEX.get(token) or re.escape(token) for token in _GLOB_TOKENS.findall(self.key))
        return re.fullmatch("".join(parts), key, re.DOTALL) is not None


def find_name_problem(name: str) -> str | None:
    """Return why a key cannot become a local path, or None if it can.

    Everyone who can write to the bucket chooses keys. One like `../../x` must not leave the target folder (CWE-22).
    """
    parts = name.split("/")
    if "\0" in name or "\\" in name:
        return "it contains a NUL or a backslash"
    if ".." in parts or "." in parts:
        return "it contains '.' or '..' as a folder"
    if "" in parts:
        return "it is absolute or contains an empty folder name ('//')"
    if max(len(part.encode()) for part in parts) > _MAX_NAME_BYTES:
        return f"a part of it is longer than {_MAX_NAME_BYTES} bytes"
    return None


def suggest_name(path: str, names: Sequence[str]) -> str:
    """Return the remedy for a path that is not among the names, or an empty text if none is known."""
    if any(character in path for character in "[{"):
        return "only *, ? and ** are wildcards"
    wanted = PurePosixPath(unquote(path))
    equal_names = [name for name in names if name.rstrip("/").lower() == str(wanted).lower()]
    neighbors = {PurePosixPath(name).name: name for name in names if PurePosixPath(name).parent == wanted.parent}
    similar_names = get_close_matches(wanted.name, neighbors, n=1, cutoff=_MIN_NAME_SIMILARITY)
    suggestions = [*equal_names, *(neighbors[name] for name in similar_names)]
    return f"is it {suggestions[0]}?" if suggestions else ""
