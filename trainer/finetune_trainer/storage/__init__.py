"""S3: connect, find, download, upload, and agree with others. boto3 knows who we are, obstore moves the bytes."""

from finetune_trainer.storage.client import S3
from finetune_trainer.storage.conditional import (
    NoConditions,
    Tagged,
    create,
    listed,
    listed_directly,
    read,
    read_tagged,
    remove,
    replace,
)
from finetune_trainer.storage.download import InputFile, check_space, download, read_range
from finetune_trainer.storage.errors import DATA, MODEL, OUTPUT, Purpose
from finetune_trainer.storage.listing import S3Object, find
from finetune_trainer.storage.locations import Location, name_problem
from finetune_trainer.storage.upload import put_bytes, put_file, put_if_absent, size_of

__all__ = [
    "DATA",
    "MODEL",
    "OUTPUT",
    "S3",
    "InputFile",
    "Location",
    "NoConditions",
    "Purpose",
    "S3Object",
    "Tagged",
    "check_space",
    "create",
    "download",
    "find",
    "listed",
    "listed_directly",
    "name_problem",
    "put_bytes",
    "put_file",
    "put_if_absent",
    "read",
    "read_range",
    "read_tagged",
    "remove",
    "replace",
    "size_of",
]
