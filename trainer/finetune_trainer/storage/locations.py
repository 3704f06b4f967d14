"""S3 URIs: bucket and key, wildcards, and the local names that keys may become."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

_WILDCARD = re.compile(r"[*?]")
_GLOB_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")
_GLOB_REGEX = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
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
