"""Fixtures of the tests of serving: the S3 server of the trainer's tests."""

from tests.trainer.conftest import credentials, s3, s3_client, s3_server

__all__ = ["credentials", "s3", "s3_client", "s3_server"]
