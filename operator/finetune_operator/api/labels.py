"""Names that the operator writes into Jobs and pods and finds them by."""

from __future__ import annotations

from finetune_operator.api.spec import GROUP

CONTROLLER_NAME = f"{GROUP}/finetune-operator"
"""The value of `spec.managedBy` that names this operator. An unset field means the same."""

# Parts of a pod
TRAINER_CONTAINER = "trainer"
"""Name of the trainer's container. Admission webhooks may add other containers to the pod."""
MODEL_CACHE_CONTAINER = "model-cache"
"""Name of the init container that fills the model cache."""
SCRATCH_VOLUME = "scratch"
"""Name of the pod's working volume. The kubelet names it if the volume is full."""
TERMINATION_LOG = "/dev/termination-log"
"""File in each container whose content is its termination message."""
VISIBLE_DEVICES_ENV = "NVIDIA_VISIBLE_DEVICES"
"""Environment variable that tells NVIDIA's container runtime which GPUs a container gets."""

# Labels
MANAGED_BY_LABEL = {"app.kubernetes.io/managed-by": "finetune-operator"}
"""Label of all Jobs of the operator and of their pods."""
JOB_LABEL = f"{GROUP}/job"
"""Label of Jobs, Services and pods. Its value is the name of the FineTuneJob, and the watches select objects by it."""
SCRATCH_CLAIM_LABEL = f"{GROUP}/scratch-claim"
"""Label of Jobs whose pods have a claim for scratch each. Such a claim exists, and costs money, as long as its pod."""
TASK_LABEL = f"{GROUP}/task"
"""Label of the Jobs and pods of tasks. They do not have `JOB_LABEL`, which selects the pods of runs."""
SCHEDULE_LABEL = f"{GROUP}/schedule"
"""Label of the FineTuneJobs of a FineTuneSchedule, with its name. Their owner reference decides whose they are."""
SWEEP_LABEL = f"{GROUP}/sweep"
"""Label of the FineTuneJobs of a FineTuneSweep, with its name. Their owner reference decides whose they are."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
KUEUE_LABELS = (QUEUE_LABEL, PRIORITY_LABEL)
"""Kueue's labels that a user sets. Those that Kueue sets itself are not copied to the Job."""

# Annotations of FineTuneJobs
SCHEDULED_TIME_ANNOTATION = f"{GROUP}/scheduled-time"
"""The time that a FineTuneSchedule has created the FineTuneJob for (RFC 3339)."""

# Annotations of Jobs
INSTALLATION_ANNOTATION = f"{GROUP}/installation"
"""The id of the installation of the operator that created the Job."""
SUSPEND_AT_STEP_ANNOTATION = f"{GROUP}/suspend-at-step"
"""The `spec.suspendAtStep` that the trainers of the Job were started with. If unset, there is none."""
PROFILE_ANNOTATION = f"{GROUP}/profile"
"""The name of the compute profile."""
PROFILE_HASH_ANNOTATION = f"{GROUP}/profile-hash"
"""The digest of the compute profile at the time when the Job was created."""
STARTUP_DEADLINE_ANNOTATION = f"{GROUP}/startup-deadline-seconds"
"""The startup deadline of an enforced compute profile. It wins over that of the FineTuneJob."""
DEFAULT_STARTUP_DEADLINE_ANNOTATION = f"{GROUP}/default-startup-deadline-seconds"
"""The startup deadline of a compute profile or of the installation, for FineTuneJobs without one."""
