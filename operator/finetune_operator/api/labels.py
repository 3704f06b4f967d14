"""Names that the operator writes into Jobs and pods and finds them by."""

from __future__ import annotations

from finetune_operator.api.spec import GROUP

TRAINER_CONTAINER = "trainer"
"""Name of the trainer's container. Admission webhooks may add other containers to the pod."""
MODEL_CACHE_CONTAINER = "model-cache"
"""Name of the init container that fills the model cache."""

TERMINATION_LOG = "/dev/termination-log"
"""File in each container whose content is its termination message."""

MANAGED_BY_LABEL = {"app.kubernetes.io/managed-by": "finetune-operator"}
"""Label of all Jobs of the operator and of their pods."""

VISIBLE_DEVICES_ENV = "NVIDIA_VISIBLE_DEVICES"
"""Environment variable that tells NVIDIA's container runtime which GPUs a container gets."""

SCRATCH_VOLUME = "scratch"
"""Name of the pod's working volume. The kubelet names it if the volume is full."""

JOB_LABEL = f"{GROUP}/job"
"""Label of Jobs, Services and pods. Its value is the name of the FineTuneJob, and the watches select objects by it."""

SCRATCH_CLAIM_LABEL = f"{GROUP}/scratch-claim"
"""Label of Jobs whose pods have a claim for scratch each. Such a claim exists, and costs money, as long as its pod."""
INSTALLATION_ANNOTATION = f"{GROUP}/installation"
"""Annotation of Jobs. Its value is the id of the installation of the operator that created the Job."""

CONTROLLER_NAME = f"{GROUP}/finetune-operator"
"""The value of `spec.managedBy` that names this operator. An unset field means the same."""
SUSPEND_AT_STEP_ANNOTATION = f"{GROUP}/suspend-at-step"
"""Annotation of Jobs with the `spec.suspendAtStep` that their trainers were started with. If unset, there is none."""
TASK_LABEL = f"{GROUP}/task"
"""Label of the Jobs and pods of tasks. They do not have `JOB_LABEL`, which selects the pods of runs."""
CLEAN_TASK = "clean"
"""Value of that label for the task that deletes checkpoints."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
KUEUE_LABELS = (QUEUE_LABEL, PRIORITY_LABEL)
"""Kueue's labels that a user sets. Those that Kueue sets itself are not copied to the Job."""

PROFILE_ANNOTATION = f"{GROUP}/profile"
"""Annotation of Jobs with the name of their compute profile."""
PROFILE_HASH_ANNOTATION = f"{GROUP}/profile-hash"
"""Annotation of Jobs with the digest of their compute profile at the time when the Job was created."""
STARTUP_DEADLINE_ANNOTATION = f"{GROUP}/startup-deadline-seconds"
"""Annotation of Jobs with the startup deadline of an enforced compute profile. It wins over that of the FineTuneJob."""
DEFAULT_STARTUP_DEADLINE_ANNOTATION = f"{GROUP}/default-startup-deadline-seconds"
"""Annotation of Jobs with the startup deadline of a compute profile or the installation, for FineTuneJobs without one.
"""
