"""S3, in four steps: connect, find, download, upload. boto3 knows who we are, obstore moves the bytes."""

from finetune_trainer.storage.connection import S3
from finetune_trainer.storage.download import InputFile, check_space, download
from finetune_trainer.storage.errors import DATA, MODEL, OUTPUT, Purpose
from finetune_trainer.storage.listing import S3Object, find
from finetune_trainer.storage.locations import Location, name_problem
from finetune_trainer.storage.upload import put_bytes, put_file, put_if_absent, read, size_of

__all__ = [
    "DATA",
    "MODEL",
    "OUTPUT",
    "S3",
    "InputFile",
    "Location",
    "Purpose",
    "S3Object",
    "check_space",
    "download",
    "find",
    "name_problem",
    "put_bytes",
    "put_file",
    "put_if_absent",
    "read",
    "size_of",
]
