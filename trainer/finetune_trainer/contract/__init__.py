"""All that operator and trainer say to each other: `TrainerConfig` in, `Progress` and `Outcome` out.

The CRD is generated from these classes, so a field's docstring is what `kubectl explain` prints, its limits are what
the API server enforces, and its default is what a stored object shows. Needs pydantic and nothing else.
"""

from finetune_trainer.contract.base import (
    NO_PARENT,
    SHORT_IN_BYTES,
    Count,
    Model,
    ModelUri,
    ModuleName,
    S3Uri,
    rules,
)
from finetune_trainer.contract.config import (
    CLUSTER_ONLY_FIELDS,
    TRAINER_RULES,
    ModelSource,
    Output,
    Storage,
    TrainerConfig,
)
from finetune_trainer.contract.dataset import Dataset, DataSource, Preparation, SensitiveKind, Validation
from finetune_trainer.contract.environment import (
    CA_BUNDLE_ENV,
    CLAIMS_DIR_ENV,
    CONFIG_ENV,
    HUB_TOKEN_FILE_ENV,
    HUB_TOKEN_KEY,
    OUTCOME_MAX_BYTES,
    OUTCOME_PATH_ENV,
    PROGRESS_PORT,
    RUN_ID_ENV,
    S3_CREDENTIALS_DIR_ENV,
    S3_CREDENTIALS_KEYS,
    SCRATCH_ENV,
)
from finetune_trainer.contract.outcome import (
    DatasetReport,
    ExitCode,
    Outcome,
    Progress,
    Reason,
    Result,
    Stage,
)
from finetune_trainer.contract.training import Checkpoints, Lora, Training

__all__ = [
    "CA_BUNDLE_ENV",
    "CLAIMS_DIR_ENV",
    "CLUSTER_ONLY_FIELDS",
    "CONFIG_ENV",
    "HUB_TOKEN_FILE_ENV",
    "HUB_TOKEN_KEY",
    "NO_PARENT",
    "OUTCOME_MAX_BYTES",
    "OUTCOME_PATH_ENV",
    "PROGRESS_PORT",
    "RUN_ID_ENV",
    "S3_CREDENTIALS_DIR_ENV",
    "S3_CREDENTIALS_KEYS",
    "SCRATCH_ENV",
    "SHORT_IN_BYTES",
    "TRAINER_RULES",
    "Checkpoints",
    "Count",
    "DataSource",
    "Dataset",
    "DatasetReport",
    "ExitCode",
    "Lora",
    "Model",
    "ModelSource",
    "ModelUri",
    "ModuleName",
    "Outcome",
    "Output",
    "Preparation",
    "Progress",
    "Reason",
    "Result",
    "S3Uri",
    "SensitiveKind",
    "Stage",
    "Storage",
    "TrainerConfig",
    "Training",
    "Validation",
    "rules",
]
