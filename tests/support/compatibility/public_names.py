"""The names that users, dashboards and scripts depend on, read from the code."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families
from tests.support.operator.exposed_metrics import Exposed, list_metric_families

from finetune_cli import errors, options
from finetune_cli.exit_statuses import EXIT_STATUSES
from finetune_operator.api import ConditionType, EventReason, OperatorReason, Phase
from finetune_operator.api.schedule import ScheduleConditionType, ScheduleEventReason, ScheduleReason, Trigger
from finetune_operator.api.sweep import SweepEventReason, SweepReason
from finetune_operator.settings import Settings
from finetune_serving import settings as resolver_settings
from finetune_trainer import contract
from finetune_trainer.checkpoints.layout import CHECKPOINT_MANIFEST_NAME, CHECKPOINTS_PREFIX
from finetune_trainer.publishing import gguf_output, merged_output, output_lock, publish, signing
from finetune_trainer.publishing.export import GENERATION_CONFIG_NAME
from finetune_trainer.records import evaluation, findings, gguf, manifest, sweep
from finetune_trainer.reporting import serving_manifests, writer
from finetune_trainer.telemetry import http_server
from finetune_trainer.telemetry.prometheus import render_metrics
from finetune_trainer.telemetry.run_log import LOG_NAME

_PROGRESS = contract.Progress(stage=contract.Stage.TRAINING, last_update_time="2026-11-23T08:00:00Z")


def collect_public_names() -> dict[str, dict[str, str]]:
    """Return the public names by kind, each with its labels (of a metric), exit code (of a reason) or value."""
    return {
        "conditions": _without_details(ConditionType),
        "phases": _without_details(Phase),
        "reasons of the operator": _without_details(OperatorReason),
        "reasons of other Events": _without_details(EventReason),
        "conditions of a schedule": _without_details(ScheduleConditionType),
        "reasons of a schedule": _without_details(ScheduleReason),
        "reasons of other Events of a schedule": _without_details(ScheduleEventReason),
        "triggers of a schedule": _without_details(Trigger),
        "reasons of a sweep": _without_details(SweepReason),
        "reasons of other Events of a sweep": _without_details(SweepEventReason),
        "reasons of a run": {reason.value: reason.exit_code.name for reason in contract.Reason},
        "exit codes": {exit_code.name: str(exit_code.value) for exit_code in contract.ExitCode},
        "stages": _without_details(contract.Stage),
        "metrics of the operator": _operator_metrics(),
        "metrics of a trainer": _trainer_metrics(),
        "environment of the operator": _without_details(
            f"FINETUNE_OPERATOR_{name}".upper() for name in Settings.model_fields
        ),
        "environment of a trainer": _without_details(sorted({*_trainer_environment(), http_server.PORT_ENV})),
        "environment of the resolver for vLLM": _without_details(
            sorted(value for name, value in vars(resolver_settings).items() if name.endswith("_ENV"))
        ),
        "environment of the command line": _without_details([options.ENDPOINT_ENV, errors.DEBUG_ENV]),
        "exit statuses of the command line": {str(status): "" for status in EXIT_STATUSES},
        "keys of Secrets": _without_details(
            sorted(
                {
                    *contract.S3_CREDENTIALS_KEYS,
                    contract.HUB_TOKEN_KEY,
                    contract.SIGNING_KEY,
                    *(key for keys in contract.TRACKING_KEYS.values() for key in keys),
                }
            )
        ),
        "keys in S3 below output.uri": _without_details(sorted(_output_keys())),
        "keys in S3 below output.uri of a sweep": _without_details(
            [sweep.BEST_NAME, manifest.REPORT_NAME, sweep.SWEEP_NAME]
        ),
    }


def _without_details(names: Iterable[str]) -> dict[str, str]:
    return {str(name): "" for name in names}


def _join_labels(labels: set[str]) -> str:
    return " ".join(sorted(labels))


def _trainer_environment() -> set[str]:
    return {value for name, value in vars(contract).items() if name.endswith("_ENV")}


def _operator_metrics() -> dict[str, str]:
    return {
        name: _join_labels(metric.labels)
        for name, metric in list_metric_families().items()
        if name.startswith("finetune_")
    }


def list_trainer_metrics() -> dict[str, Exposed]:
    """Return type, labels and help text of each metric of a trainer by its name."""
    times = {"last_checkpoint_time": "2026-11-23T08:00:00Z"}
    progress = _PROGRESS.model_copy(update=dict.fromkeys(_numeric_progress_fields(), 1) | times)
    text = render_metrics(progress, contract.CacheResult.HIT).decode()
    return {
        metric.name: Exposed(
            metric.type, {label for sample in metric.samples for label in sample.labels}, metric.documentation
        )
        for metric in text_string_to_metric_families(text)
    }


def _trainer_metrics() -> dict[str, str]:
    return {name: _join_labels(metric.labels) for name, metric in list_trainer_metrics().items()}


def _numeric_progress_fields() -> set[str]:
    return {name for name in contract.Progress.model_fields if name not in {"stage", "last_update_time"}}


def _output_keys() -> set[str]:
    return {
        output_lock.LOCK_NAME,
        CHECKPOINTS_PREFIX,
        CHECKPOINT_MANIFEST_NAME,
        publish.CONFIG_NAME,
        publish.REJECTED_PREFIX,
        publish.FAILED_PREFIX,
        findings.FINDINGS_NAME,
        manifest.MANIFEST_NAME,
        manifest.REPORT_NAME,
        signing.SIGNATURE_NAME,
        writer.CARD_NAME,
        evaluation.EVALUATION_NAME,
        manifest.ROW_SCORES_NAME,
        writer.PROVENANCE_NAME,
        LOG_NAME,
        gguf_output.GGUF_ATTEMPTS_NAME,
        gguf.GGUF_PREFIX,
        merged_output.MERGE_ATTEMPTS_NAME,
        manifest.UPLOAD_RECORD_NAME,
        manifest.MERGED_PREFIX,
        GENERATION_CONFIG_NAME,
        serving_manifests.VLLM_NAME,
        serving_manifests.KSERVE_NAME,
    }
