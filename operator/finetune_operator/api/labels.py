"""Names that the operator writes into Jobs and pods and finds them by."""

from __future__ import annotations

from finetune_operator.api.spec import GROUP

TRAINER_CONTAINER = "trainer"
"""Name of the trainer's container. Admission webhooks may add other containers to the pod."""

JOB_LABEL = f"{GROUP}/job"
"""Label of Jobs, Services and pods. Its value is the name of the FineTuneJob, and the watches select objects by it."""

TASK_LABEL = f"{GROUP}/task"
"""Label of the Jobs and pods of tasks. They do not have `JOB_LABEL`, which selects the pods of runs."""
CLEAN_TASK = "clean"
"""Value of that label for the task that deletes checkpoints."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
KUEUE_LABELS = (QUEUE_LABEL, PRIORITY_LABEL)
"""Kueue's labels that a user sets. Those that Kueue sets itself are not copied to the Job."""
