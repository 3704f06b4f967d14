"""What an S3 URI means: bucket and key, wildcards, and which local name a key may take."""

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
        """Split `s3://bucket/key`; the contract's patterns have checked it."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return cls(bucket, key)

    @classmethod
    def parse_folder(cls, uri: str) -> Self:
        """The same, read as a prefix: `s3://bucket/a` and `s3://bucket/a/` both hold `a/…`."""
        return cls.parse(uri.rstrip("/") + "/")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def child(self, name: str) -> Location:
        """The key `name` under this prefix."""
        return Location(self.bucket, self.key + name)

    @property
    def is_pattern(self) -> bool:
        """Whether the key has `*` or `?`."""
        return _WILDCARD.search(self.key) is not None

    @property
    def is_single(self) -> bool:
        """Whether it names exactly one object."""
        return not self.is_pattern and not self.key.endswith("/")

    @property
    def base_prefix(self) -> str:
        """The part of the key that all matches share, up to and with its last `/`."""
        literal_prefix = _WILDCARD.split(self.key, maxsplit=1)[0]
        return literal_prefix[: literal_prefix.rfind("/") + 1]

    @property
    def list_prefix(self) -> str:
        """What to list: everything before the first wildcard."""
        return _WILDCARD.split(self.key, maxsplit=1)[0]

    def matches(self, key: str) -> bool:
        """Whether a listed key belongs here. `*` and `?` stay within a folder, `**` does not."""
        if not self.is_pattern:
            return key.startswith(self.key)
        parts = (_GLOB_REGEX.get(token) or re.escape(token) for token in _GLOB_TOKENS.findall(self.key))
        return re.fullmatch("".join(parts), key, re.DOTALL) is not None


def find_name_problem(name: str) -> str | None:
    """Why a key may not become a local path; None if it may.

    Keys are chosen by whoever may write to the bucket; one like `../../x` must not leave the target (CWE-22).
    """
    parts = name.split("/")
    if "\0" in name or "\\" in name:
        return "it holds a NUL or a backslash"
    if ".." in parts or "." in parts:
        return "it holds '.' or '..' as a folder"
    if "" in parts:
        return "it is absolute or holds an empty folder name ('//')"
    if max(len(part.encode()) for part in parts) > _MAX_NAME_BYTES:
        return f"a part of it is longer than {_MAX_NAME_BYTES} bytes"
    return None
