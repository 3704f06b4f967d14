"""The FineTuneJob API: spec, status, conditions and reasons. The CRD is generated from it."""

from finetune_operator.api.spec import (
    API_VERSION,
    GROUP,
    KIND,
    PLURAL,
    VERSION,
    ConfigMapKeyRef,
    FineTuneJob,
    FineTuneJobSpec,
    ObjectMeta,
    StorageSpec,
)
from finetune_operator.api.status import (
    Condition,
    ConditionType,
    EventReason,
    FineTuneJobStatus,
    ObservedProgress,
    OperatorReason,
    Phase,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "PLURAL",
    "VERSION",
    "Condition",
    "ConditionType",
    "ConfigMapKeyRef",
    "EventReason",
    "FineTuneJob",
    "FineTuneJobSpec",
    "FineTuneJobStatus",
    "ObjectMeta",
    "ObservedProgress",
    "OperatorReason",
    "Phase",
    "StorageSpec",
]
