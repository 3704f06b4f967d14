"""The retry policy for S3. boto3 and obstore retry single requests; the functions here repeat what they do not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Exception)

# A wrong endpoint is reported after about half a minute, whether it refuses connections or drops them.
OBSTORE_RETRY_CONFIG: RetryConfig = {"max_retries": 6, "retry_timeout": timedelta(seconds=45)}
BOTO3_ATTEMPTS = 3
READ_ATTEMPTS = 3
"""Attempts to read a small object: boto3 does not retry once the body has begun."""
CONDITIONAL_WRITE_ATTEMPTS = 2
"""Attempts of a conditional write: obstore does not retry it after a broken connection, since it may have succeeded."""
MANIFEST_ATTEMPTS = 3
"""Attempts to create a manifest: S3 may reject both of two concurrent writers (409)."""
LOCK_ATTEMPTS = 5
"""Attempts to acquire an output lock that others acquire and release at the same time."""
ALIAS_ATTEMPTS = 5
"""Attempts to find an alias written. Each of them reads it first, and writes it if it has other content."""


def _is_any(_: Exception) -> bool:
    return True


def retry_on_error(
    call: Callable[[], _T], error_type: type[_E], attempts: int, is_transient: Callable[[_E], bool] = _is_any
) -> _T:
    """Call up to `attempts` times without a pause, as long as it raises a transient error of this type."""
    for _ in range(attempts - 1):
        try:
            return call()
        except error_type as error:
            if not is_transient(error):
                raise
    return call()


def retry_until_true(call: Callable[[], _T], attempts: int) -> _T:
    """Call up to `attempts` times without a pause until the result is true. Returns the last result."""
    result = call()
    for _ in range(attempts - 1):
        if result:
            break
        result = call()
    return result
