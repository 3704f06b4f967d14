"""Translates errors of S3 into `TrainerError`s with a reason and advice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from botocore import exceptions as boto
from obstore.exceptions import BaseError as ObstoreError
from urllib3.exceptions import HTTPError

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError


@dataclass(frozen=True)
class ErrorMapping:
    """The reasons of failures, by what an object is used for."""

    missing_reason: Reason
    invalid_reason: Reason


DATA_ERRORS = ErrorMapping(Reason.DATA_NOT_FOUND, Reason.DATA_INVALID)
MODEL_ERRORS = ErrorMapping(Reason.MODEL_NOT_FOUND, Reason.MODEL_INVALID)
OUTPUT_ERRORS = ErrorMapping(Reason.OUTPUT_NOT_FOUND, Reason.CONFIG_INVALID)

_CHECK_CREDENTIALS = "check the credentials Secret, or the environment's identity"
_ACCESS_DENIED = "these credentials lack the permission; extend their policy"
_OVERLOADED = "the store is overloaded or failing; the request was retried"
_WRONG_REGION = "the bucket is in another region; set storage.region to it"
_UNKNOWN_KEY_ID = "the store does not know this access key id; " + _CHECK_CREDENTIALS
_WRONG_SECRET_KEY = "the secret key does not match the access key id; " + _CHECK_CREDENTIALS
_CLOCK_SKEW = "the clock of this machine differs from that of the store"
_BODY_TRUNCATED = "the connection ended before all bytes were received"
_INVALID_TOKEN = "the session token is wrong or has expired; " + _CHECK_CREDENTIALS
_OBJECT_CHANGED = "it changed while it was read; wait until its writer has finished, then run again"

_REASONS_BY_CODE: dict[str, tuple[Reason, str]] = {
    "InvalidAccessKeyId": (Reason.AUTH_FAILED, _UNKNOWN_KEY_ID),
    "XAdminUserNotFound": (Reason.AUTH_FAILED, _UNKNOWN_KEY_ID),  # versitygw with its owner's account alone
    "SignatureDoesNotMatch": (Reason.AUTH_FAILED, _WRONG_SECRET_KEY),
    "InvalidToken": (Reason.AUTH_FAILED, _INVALID_TOKEN),
    "ExpiredToken": (Reason.AUTH_FAILED, _INVALID_TOKEN),
    "RequestTimeTooSkewed": (Reason.AUTH_FAILED, _CLOCK_SKEW),
    "401": (Reason.AUTH_FAILED, _CHECK_CREDENTIALS),
    "AccessDenied": (Reason.ACCESS_DENIED, _ACCESS_DENIED),
    "AllAccessDisabled": (Reason.ACCESS_DENIED, _ACCESS_DENIED),
    "403": (Reason.ACCESS_DENIED, _ACCESS_DENIED),
    "AuthorizationHeaderMalformed": (Reason.CONFIG_INVALID, _WRONG_REGION),
    "PermanentRedirect": (Reason.CONFIG_INVALID, _WRONG_REGION),
    "301": (Reason.CONFIG_INVALID, _WRONG_REGION),
    "PreconditionFailed": (Reason.STORAGE_CORRUPT, _OBJECT_CHANGED),
    "412": (Reason.STORAGE_CORRUPT, _OBJECT_CHANGED),
    "BadDigest": (Reason.STORAGE_CORRUPT, "the store received other bytes than were sent"),
}
_MISSING_MESSAGES = {
    "NoSuchBucket": "the bucket does not exist",
    "NoSuchKey": "there is no such object",
    "404": "there is no such bucket or object",
}
_OBSTORE_CODE = re.compile(r"<Code>(\w+)</Code>")
_OBSTORE_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})")
_CREDENTIAL_ERRORS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
)
_CONNECTION_ERRORS = (boto.HTTPClientError, boto.ConnectionError, HTTPError)
"""botocore lets errors of urllib3 pass that occur while it reads an answer."""


@contextmanager
def translate_errors(subject: object, endpoint: str, error_mapping: ErrorMapping) -> Iterator[None]:
    """Turn what boto3 and obstore raise inside the block into a `TrainerError` about `subject`."""
    location = f"{subject} at {endpoint}"
    try:
        yield
    except boto.ClientError as error:
        raise build_response_error(location, str(error.response["Error"].get("Code", "")), error_mapping) from error
    except _CREDENTIAL_ERRORS as error:
        raise build_no_credentials_error(str(error)) from error
    except _CONNECTION_ERRORS as error:
        raise _build_no_response_error(location, str(error)) from error
    # obstore raises FileNotFoundError for a missing object.
    except (ObstoreError, FileNotFoundError) as error:
        raise _build_obstore_error(location, str(error), error_mapping) from error


def get_error_code(error: ObstoreError | FileNotFoundError) -> str:
    """Return the S3 error code or HTTP status of an obstore error, which only its text contains."""
    text = str(error)
    match = _OBSTORE_CODE.search(text) or _OBSTORE_STATUS.search(text)
    return match.group(1) if match else ""


def build_response_error(location: str, code: str, error_mapping: ErrorMapping) -> TrainerError:
    """Build the error for an S3 error code."""
    if code in _MISSING_MESSAGES:
        return TrainerError(
            error_mapping.missing_reason, f"{location}: {_MISSING_MESSAGES[code]}; check the URI and storage.endpoint"
        )
    reason, advice = _REASONS_BY_CODE.get(code, (Reason.STORAGE_UNREACHABLE, _OVERLOADED))
    return TrainerError(reason, f"{location}: {advice} ({code})")


def build_no_credentials_error(detail: str) -> TrainerError:
    """Build the error for missing credentials."""
    advice = (
        "set storage.credentialsSecretRef, or compute.serviceAccountName to a service account with a cloud identity, "
        "or ask the administrator for defaults.allowNodeIdentity, which lets trainers use the identity of their node; "
        "outside of a cluster set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )
    return TrainerError(Reason.AUTH_FAILED, f"no S3 credentials ({detail}); {advice}")


def _build_no_response_error(location: str, detail: str) -> TrainerError:
    advice = "check storage.endpoint, DNS, network policy and, for TLS, storage.caConfigMapRef (AWS_CA_BUNDLE)"
    return TrainerError(Reason.STORAGE_UNREACHABLE, f"{location}: no response; {advice} ({detail})")


def _build_obstore_error(location: str, text: str, error_mapping: ErrorMapping) -> TrainerError:
    match = _OBSTORE_CODE.search(text) or _OBSTORE_STATUS.search(text)
    if match:
        return build_response_error(location, match.group(1), error_mapping)
    if "response body error" in text:
        return TrainerError(Reason.STORAGE_CORRUPT, f"{location}: {_BODY_TRUNCATED}, several times")
    # The first line is the message; the rest is a dump of Rust structs.
    return _build_no_response_error(location, text.splitlines()[0])
