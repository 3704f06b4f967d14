"""Typed Python client of finetune-operator: FineTuneJobs, FineTuneSchedules and FineTuneSweeps in a cluster, and their
results in S3.

    from finetune_operator.client import Client

    client = Client(namespace="support")
    job = client.submit("job.yaml")
    job = client.wait(job.metadata.name)
    print(client.metrics(job.metadata.name))
"""

from finetune_operator.client.client import Client
from finetune_operator.client.comparison import Difference, MetricRow, RunComparison, compare_runs
from finetune_operator.client.errors import (
    ClientError,
    ClusterUnavailable,
    Forbidden,
    InvalidManifest,
    InvalidState,
    LoginRequired,
    ObjectExists,
    ObjectNotFound,
    OperatorNotInstalled,
    ResultUnavailable,
    WaitTimeout,
)
from finetune_operator.client.following import wait_condition_of
from finetune_operator.client.pods import Event
from finetune_operator.client.resources import Resource
from finetune_operator.client.results import ResultStore, StoredResult
from finetune_operator.client.states import check_active, check_resumable
from finetune_operator.client.summaries import RunSummary, summarize_job, summarize_result

__all__ = [
    "Client",
    "ClientError",
    "ClusterUnavailable",
    "Difference",
    "Event",
    "Forbidden",
    "InvalidManifest",
    "InvalidState",
    "LoginRequired",
    "MetricRow",
    "ObjectExists",
    "ObjectNotFound",
    "OperatorNotInstalled",
    "Resource",
    "ResultStore",
    "ResultUnavailable",
    "RunComparison",
    "RunSummary",
    "StoredResult",
    "WaitTimeout",
    "check_active",
    "check_resumable",
    "compare_runs",
    "summarize_job",
    "summarize_result",
    "wait_condition_of",
]
