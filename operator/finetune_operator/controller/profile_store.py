"""The compute profiles in the mounted file, which changes while the operator runs."""

from __future__ import annotations

import logging
from pathlib import Path

from finetune_operator.policy.profiles import Profiles, ProfilesError, parse_profiles

log = logging.getLogger(__name__)


class ProfileStore:
    """Reads the file of profiles again each time that they are needed.

    The kubelet replaces the files of a ConfigMap at once, by renaming a symbolic link.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file. Without a path there are no profiles. Raises `ProfilesError` if the file is invalid."""
        self._path = path
        self._content: bytes | None = None
        self._profiles = Profiles()
        self._error = self._refresh()
        if self._error:
            raise ProfilesError(self._error)

    def read(self) -> Profiles:
        """Return the profiles in the file. As long as it is invalid, return those of the last valid file."""
        self.check()
        return self._profiles

    def check(self) -> bool:
        """Read the file if it has changed. Return whether it is valid. The same error is logged once."""
        error = self._refresh()
        if error and error != self._error:
            log.error("%s; the last valid compute profiles are still used", error)
        self._error = error
        return not error

    def _refresh(self) -> str:
        """Replace the profiles by those in the file, and return an empty string, or why this is not possible."""
        if self._path is None:
            return ""
        try:
            content = self._path.read_bytes()
            if content != self._content:
                self._profiles = parse_profiles(content)
                log.info("read the compute profiles: %s", ", ".join(sorted(self._profiles.profiles)) or "none")
        except (OSError, ProfilesError) as error:
            return f"invalid compute profiles in {self._path}: {error}"
        self._content = content
        return ""
