"""Access to S3: boto3 for credentials, lists and metadata, obstore for transfers and conditional writes."""

from finetune_trainer.storage.client import S3
from finetune_trainer.storage.conditional import (
    ConditionalWritesUnsupported,
    ObjectWithETag,
    create_object,
    delete_objects,
    list_direct_objects,
    list_objects,
    read_object,
    read_with_etag,
    replace_object,
)
from finetune_trainer.storage.download import InputFile, download_objects, read_range
from finetune_trainer.storage.errors import DATA_ERRORS, MODEL_ERRORS, OUTPUT_ERRORS, ErrorMapping
from finetune_trainer.storage.listing import S3Object, find_objects
from finetune_trainer.storage.locations import Location, find_name_problem, suggest_name
from finetune_trainer.storage.scratch import check_disk_space
from finetune_trainer.storage.upload import get_object_size, put_bytes, put_file, put_if_absent

__all__ = [
    "DATA_ERRORS",
    "MODEL_ERRORS",
    "OUTPUT_ERRORS",
    "S3",
    "ConditionalWritesUnsupported",
    "ErrorMapping",
    "InputFile",
    "Location",
    "ObjectWithETag",
    "S3Object",
    "check_disk_space",
    "create_object",
    "delete_objects",
    "download_objects",
    "find_name_problem",
    "find_objects",
    "get_object_size",
    "list_direct_objects",
    "list_objects",
    "put_bytes",
    "put_file",
    "put_if_absent",
    "read_object",
    "read_range",
    "read_with_etag",
    "replace_object",
    "suggest_name",
]
