"""Check of the S3 store with the user's own keys."""

from __future__ import annotations

from finetune_cli.examination.findings import Finding, Level


def check_storage(uri: str, endpoint: str | None) -> Finding:
    """List one object at an S3 URI with the keys of this machine."""
    from finetune_trainer.contract import Storage
    from finetune_trainer.errors import TrainerError
    from finetune_trainer.storage import OUTPUT_ERRORS, S3, Location
    from finetune_trainer.storage.errors import translate_errors

    location = Location.parse(uri)
    try:
        bucket = S3(Storage(endpoint=endpoint)).bucket(location.bucket)
        with translate_errors(location, bucket.endpoint, OUTPUT_ERRORS):
            bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=location.key, MaxKeys=1)
    except TrainerError as error:
        return Finding(Level.MISSING, "storage", error.message)
    return Finding(Level.OK, "storage", f"{uri} at {bucket.endpoint} can be listed with the keys of this machine")
