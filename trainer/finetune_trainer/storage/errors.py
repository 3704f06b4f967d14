"""What a store's answer means: every S3 error becomes a `TrainerError` with a reason and a sentence to act on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from botocore import exceptions as boto
from obstore.exceptions import BaseError as ObstoreError

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError


@dataclass(frozen=True)
class Purpose:
    """What an object is for; it decides the reason of a failure."""

    missing: Reason
    invalid: Reason


DATA = Purpose(Reason.DATA_NOT_FOUND, Reason.DATA_INVALID)
MODEL = Purpose(Reason.MODEL_NOT_FOUND, Reason.MODEL_INVALID)
OUTPUT = Purpose(Reason.OUTPUT_NOT_FOUND, Reason.CONFIG_INVALID)

_KEYS = "check the credentials Secret, or the environment's identity"
_DENIED = "these credentials may not do this; extend their policy"
_BUSY = "the store is overloaded or broken; it was asked several times"
_REGION = "the bucket lies in another region; set storage.region to it"
_UNKNOWN = "the store does not know this access key id; " + _KEYS
_UNSIGNED = "the secret key does not fit the access key id; " + _KEYS
_CLOCK = "this machine's clock differs from the store's"
_CUT = "the connection ended before all bytes had come"
_TOKEN = "the session token is wrong or has expired; " + _KEYS
_CHANGED = "it changed while it was read; let its writer finish, then run again"

_CODES: dict[str, tuple[Reason, str]] = {
    "InvalidAccessKeyId": (Reason.AUTH_FAILED, _UNKNOWN),
    "XAdminUserNotFound": (Reason.AUTH_FAILED, _UNKNOWN),  # versitygw with its owner's account alone
    "SignatureDoesNotMatch": (Reason.AUTH_FAILED, _UNSIGNED),
    "InvalidToken": (Reason.AUTH_FAILED, _TOKEN),
    "ExpiredToken": (Reason.AUTH_FAILED, _TOKEN),
    "RequestTimeTooSkewed": (Reason.AUTH_FAILED, _CLOCK),
    "401": (Reason.AUTH_FAILED, _KEYS),
    "AccessDenied": (Reason.ACCESS_DENIED, _DENIED),
    "AllAccessDisabled": (Reason.ACCESS_DENIED, _DENIED),
    "403": (Reason.ACCESS_DENIED, _DENIED),
    "AuthorizationHeaderMalformed": (Reason.CONFIG_INVALID, _REGION),
    "PermanentRedirect": (Reason.CONFIG_INVALID, _REGION),
    "301": (Reason.CONFIG_INVALID, _REGION),
    "PreconditionFailed": (Reason.STORAGE_CORRUPT, _CHANGED),
    "412": (Reason.STORAGE_CORRUPT, _CHANGED),
    "BadDigest": (Reason.STORAGE_CORRUPT, "the store received other bytes than were sent"),
}
_MISSING = {
    "NoSuchBucket": "the bucket does not exist",
    "NoSuchKey": "there is no such object",
    "404": "there is no such bucket or object",
}
_OBSTORE_CODE = re.compile(r"<Code>(\w+)</Code>")
_OBSTORE_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})")
_NO_IDENTITY = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
)
_NO_ANSWER = (boto.HTTPClientError, boto.ConnectionError)


@contextmanager
def explained(subject: object, endpoint: str, purpose: Purpose) -> Iterator[None]:
    """Turn what boto3 and obstore raise inside the block into a `TrainerError` about `subject`."""
    where = f"{subject} at {endpoint}"
    try:
        yield
    except boto.ClientError as error:
        raise answered(where, str(error.response["Error"].get("Code", "")), purpose) from error
    except _NO_IDENTITY as error:
        raise no_identity(str(error)) from error
    except _NO_ANSWER as error:
        raise _unanswered(where, str(error)) from error
    # A missing object is Python's own FileNotFoundError in obstore.
    except (ObstoreError, FileNotFoundError) as error:
        raise _from_obstore(where, str(error), purpose) from error


def code_of(error: ObstoreError | FileNotFoundError) -> str:
    """S3's error code: obstore has no field for it, its text quotes the answer's body."""
    text = str(error)
    found = _OBSTORE_CODE.search(text) or _OBSTORE_STATUS.search(text)
    return found.group(1) if found else ""


def answered(where: str, code: str, purpose: Purpose) -> TrainerError:
    """The store said no, with a code."""
    if code in _MISSING:
        return TrainerError(purpose.missing, f"{where}: {_MISSING[code]}; check the URI and storage.endpoint")
    reason, advice = _CODES.get(code, (Reason.STORAGE_UNREACHABLE, _BUSY))
    return TrainerError(reason, f"{where}: {advice} ({code})")


def no_identity(detail: str) -> TrainerError:
    """Nobody to sign requests as."""
    advice = (
        "set storage.credentialsSecretRef, or compute.serviceAccountName to a service account with a cloud identity, "
        "or ask the administrator for defaults.allowNodeIdentity, which lets trainers use their node's identity; "
        "outside of a cluster set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )
    return TrainerError(Reason.AUTH_FAILED, f"no S3 credentials ({detail}); {advice}")


def _unanswered(where: str, detail: str) -> TrainerError:
    advice = "check storage.endpoint, DNS, network policy and, for TLS, storage.caConfigMapRef (AWS_CA_BUNDLE)"
    return TrainerError(Reason.STORAGE_UNREACHABLE, f"{where}: no answer; {advice} ({detail})")


def _from_obstore(where: str, text: str, purpose: Purpose) -> TrainerError:
    found = _OBSTORE_CODE.search(text) or _OBSTORE_STATUS.search(text)
    if found:
        return answered(where, found.group(1), purpose)
    if "response body error" in text:
        return TrainerError(Reason.STORAGE_CORRUPT, f"{where}: {_CUT}, several times")
    # The first line is the sentence; what follows is a dump of Rust structs.
    return _unanswered(where, text.splitlines()[0])
