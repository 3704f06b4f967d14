"""Invalid output, storage, compute, evaluation and tracking, as changes to a valid manifest."""

from __future__ import annotations

from typing import Any

from tests.support.cluster.manifests import (
    ABSENT,
    CROSS_VALIDATION,
    DPO_TRAINING,
    FIVE_FOLDS,
    FOLD_LOSS_GATE,
    PREPARATION,
    SOURCE,
    VALIDATION_SPLIT,
)

TEST_DATA = {"sources": [{"uri": "s3://data/test.jsonl"}]}

GRADER = {"name": "label", "stringCheck": {"reference": "{{item.label}}"}}
TRAINING = "spec.training"
GRPO: dict[str, Any] = {
    f"{TRAINING}.method": "grpo", f"{TRAINING}.rewards": [{"grader": "label"}], "spec.evaluation.graders": [GRADER],
}  # fmt: skip
SERVER = {"name": "judges", "uri": "http://judges/v1"}
JUDGE: dict[str, Any] = {"name": "a", "judge": {"endpoint": "judges", "model": "m", "instructions": "Right?"}}

# name: (changes to the valid manifest, field in the error, text in the error)
INVALID_RUNTIME_SPECS: dict[str, tuple[dict[str, Any], str, str]] = {
    # output and storage
    "no output": ({"spec.output": ABSENT}, "spec.output", "Required value"),
    "output with a wildcard": ({"spec.output.uri": "s3://out/*"}, "spec.output", "must not contain wildcards"),
    "output with ..": ({"spec.output.uri": "s3://out/a/.."}, "spec.output", "must not contain '..'"),
    "output on a claim": ({"spec.output.uri": "pvc://claim/out"}, "spec.output", "uri must be s3://bucket/prefix"),
    "output with a date": ({"spec.output.uri": "s3://out/{date}/a"}, "spec.output", "{name} or {namespace}"),
    "output with a backslash": ({"spec.output.uri": "s3://out/a\\b"}, "spec.output", "must not contain backslashes"),
    "endpoint without a scheme": ({"spec.storage.endpoint": "s3:9000"}, "spec.storage.endpoint", "should match"),
    "endpoint with a path": ({"spec.storage.endpoint": "http://s3/x"}, "spec.storage.endpoint", "should match"),
    "endpoint with keys": ({"spec.storage.endpoint": "http://k:s@s3"}, "spec.storage.endpoint", "should match"),
    "region in upper case": ({"spec.storage.region": "EU"}, "spec.storage.region", "should match"),
    "unknown addressing": ({"spec.storage.addressing": "dns"}, "spec.storage.addressing", "Unsupported value"),
    "unknown checksums": ({"spec.storage.checksums": "never"}, "spec.storage.checksums", "Unsupported value"),
    "keys in the manifest": ({"spec.storage.accessKey": "AKIA"}, "spec.storage.accessKey", "unknown field"),
    "credentials without a name": (
        {"spec.storage.credentialsSecretRef": {}}, "spec.storage.credentialsSecretRef.name", "Required value",
    ),
    "credentials with a slash": (
        {"spec.storage.credentialsSecretRef.name": "a/b"}, "spec.storage.credentialsSecretRef.name", "should match",
    ),
    "certificates without a name": (
        {"spec.storage.caConfigMapRef": {"key": "ca.crt"}}, "spec.storage.caConfigMapRef.name", "Required value",
    ),
    # compute
    "profile in upper case": ({"spec.compute.profile": "H100"}, "spec.compute.profile", "should match"),
    "profile in another folder": ({"spec.compute.profile": "../admin"}, "spec.compute.profile", "should match"),
    "empty profile": ({"spec.compute.profile": ""}, "spec.compute.profile", "should be at least 1 chars long"),
    "profile in the manifest": (
        {"spec.compute.profile": {"enforce": True}}, "spec.compute.profile.enforce", "unknown field",
    ),
    "long profile": ({"spec.compute.profile": "a" * 254}, "spec.compute.profile", "Too long"),
    "image with a space": ({"spec.compute.image": "a b"}, "spec.compute.image", "should match"),
    "image with an option": ({"spec.compute.image": "--privileged"}, "spec.compute.image", "should match"),
    "image with a NUL": ({"spec.compute.image": "a\0b"}, "spec.compute.image", "should match"),
    "label of the operator's own": (
        {"spec.compute.podLabels": {"finetune.dev/job": "x"}}, "spec.compute", "podLabels: a key is reserved",
    ),
    "label that Services select": (
        {"spec.compute.podLabels": {"app.kubernetes.io/name": "x"}}, "spec.compute", "podLabels: a key is reserved",
    ),
    "no AppArmor": (
        {"spec.compute.podAnnotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}},
        "spec.compute", "podAnnotations: a key is reserved",
    ),
    "a volume for the sidecar": (
        {"spec.compute.podAnnotations": {"sidecar.istio.io/userVolume": "{}"}}, "spec.compute",
        "podAnnotations: a key is reserved",
    ),
    "priority of Kubernetes' own": (
        {"spec.compute.priorityClassName": "system-node-critical"}, "spec.compute", "must not start with 'system-'",
    ),
    "17 GPUs": ({"spec.compute.gpusPerNode": 17}, "spec.compute.gpusPerNode", "less than or equal to 16"),
    "no node": ({"spec.compute.nodes": 0}, "spec.compute.nodes", "greater than or equal to 1"),
    "65 nodes": ({"spec.compute.nodes": 65}, "spec.compute.nodes", "less than or equal to 64"),
    "Unsloth on two GPUs": (
        {"spec.training.backend": "unsloth", "spec.compute.gpusPerNode": 2}, "spec", "unsloth trains on one GPU",
    ),
    "Unsloth on two nodes": (
        {"spec.training.backend": "unsloth", "spec.compute.nodes": 2}, "spec", "unsloth trains on one GPU",
    ),
    "negative GPUs": ({"spec.compute.gpusPerNode": -1}, "spec.compute.gpusPerNode", "greater than or equal to 0"),
    "GPU resource with a space": ({"spec.compute.gpuResource": "n v"}, "spec.compute.gpuResource", "should match"),
    "CPUs for GPUs": ({"spec.compute.gpuResource": "cpu"}, "spec.compute.gpuResource", "should match"),
    "memory in gigabyte": (
        {"spec.compute.resources.requests": {"memory": "4GB"}}, "spec.compute.resources.requests.memory",
        "should match",
    ),
    "cpu as a number": (
        {"spec.compute.resources.limits": {"cpu": 4}}, "spec.compute.resources.limits.cpu", "of type string",
    ),
    "scratch without a number": ({"spec.compute.scratch.size": "big"}, "spec.compute.scratch.size", "should match"),
    "node label with a space": (
        {"spec.compute.nodeSelector": {"disk": "s s d"}}, "spec.compute.nodeSelector.disk", "should match",
    ),
    "node label with a bad key": ({"spec.compute.nodeSelector": {"a b": "x"}}, "spec.compute.nodeSelector", "key"),
    "33 node labels": (
        {"spec.compute.nodeSelector": {f"k{n}": "v" for n in range(33)}}, "spec.compute.nodeSelector", "at most 32",
    ),
    "unknown taint effect": (
        {"spec.compute.tolerations": [{"effect": "Never"}]}, "spec.compute.tolerations[0].effect", "Unsupported value",
    ),
    "complete pod spec": ({"spec.compute.hostNetwork": True}, "spec.compute.hostNetwork", "unknown field"),
    "no time to stop": (
        {"spec.compute.terminationGracePeriodSeconds": 0}, "spec.compute.terminationGracePeriodSeconds", "equal to 1",
    ),
    "negative attempts": ({"spec.backoffLimit": -1}, "spec.backoffLimit", "greater than or equal to 0"),
    "no time to start": ({"spec.startupDeadlineSeconds": 0}, "spec.startupDeadlineSeconds", "equal to 1"),
    "no time to run": ({"spec.activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds", "equal to 1"),
    "a year and a second": ({"spec.activeDeadlineSeconds": 31536001}, "spec.activeDeadlineSeconds", "31536000"),
    "a negative ttl": ({"spec.ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished", "equal to 0"),
    "suspend as text": ({"spec.suspend": "yes"}, "spec.suspend", "boolean"),
    "early stopping with nothing to look at": (
        {"spec.training.earlyStopping": {"patience": 2}}, "spec", "training.earlyStopping needs dataset.validation",
    ),
    "no patience": (
        {"spec.training.earlyStopping": {"patience": 0}}, "spec.training.earlyStopping.patience", "equal to 1",
    ),
    "a task with nothing to measure on": ({"spec.evaluation.task": "chat"}, "spec", "evaluation.task needs"),
    "a task for preferences": (
        {**DPO_TRAINING, "spec.evaluation.task": "chat"}, "spec", "needs dataset.validation or evaluation.test, and",
    ),
    "graders with nothing to measure on": (
        {"spec.evaluation.graders": [GRADER]}, "spec", "evaluation.graders needs method sft with",
    ),
    "a grader of no kind": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [{"name": "a"}]},
        "spec.evaluation.graders[0]", "exactly one of",
    ),
    "a grader of two kinds": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [{**GRADER, "math": {}}]},
        "spec.evaluation.graders[0]", "exactly one of stringCheck",
    ),
    "a grader with the name of a metric": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [{**GRADER, "name": "rougeL"}]},
        "spec.evaluation.graders[0]", "name is that of a metric",
    ),
    "a grader with the prefix of test metrics": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [{**GRADER, "name": "testLabel"}]},
        "spec.evaluation.graders[0]", "begins with base, eval, test or train",
    ),
    "a path that is a template": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [
            {"name": "a", "stringCheck": {"reference": "{{item.label | upper}}"}}
        ]},
        "spec.evaluation.graders[0].stringCheck", "must be a text, or one path in double braces",
    ),
    "text around a path": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [{"name": "a", "numeric": {"input": "is {{item.a}}"}}]},
        "spec.evaluation.graders[0].numeric", "must be a text, or one path in double braces",
    ),
    "a schema of 16 KiB": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [
            {"name": "a", "jsonSchema": {"schema": '{"const": "' + "a" * 16384 + '"}'}}
        ]},
        "spec.evaluation.graders[0].jsonSchema.schema", "Too long",
    ),
    "a length without limits": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [{"name": "a", "length": {}}]},
        "spec.evaluation.graders[0].length", "at least one of minimum and maximum",
    ),
    "a sum of unknown graders": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [
            GRADER, {"name": "b", "weighted": {"terms": [{"grader": "c"}]}}
        ]},
        "spec.evaluation", "terms of a weighted grader must be names of other graders",
    ),
    "a sum of itself": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [{"name": "b", "weighted": {"terms": [{"grader": "b"}]}}]},
        "spec.evaluation", "that are not weighted",
    ),
    "two graders of one name": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [GRADER, GRADER]}, "spec.evaluation.graders[1]", "Duplicate",
    ),
    "a method without rewards": ({**GRPO, f"{TRAINING}.rewards": []}, "spec.training", "grpo and rloo need rewards"),
    "rewards of another method": ({**GRPO, f"{TRAINING}.method": "sft"}, "spec.training", "other methods have none"),
    "a reward that is no grader": (
        {**GRPO, f"{TRAINING}.rewards": [{"grader": "other"}]}, "spec", "must be names of evaluation.graders",
    ),
    "a reward twice": (
        {**GRPO, f"{TRAINING}.rewards": [{"grader": "label"}] * 2}, "spec.training", "different graders",
    ),
    "a rollout of another method": ({f"{TRAINING}.rollout": {}}, "spec.training", "rollout applies to methods grpo"),
    "one generation": ({**GRPO, f"{TRAINING}.rollout": {"generations": 1}}, "spec.training.rollout.generations", "2"),
    "incomplete groups": ({**GRPO, f"{TRAINING}.batchSize": 3}, "spec", "multiple of training.rollout.generations"),
    "a loss type of rloo": (
        {**GRPO, f"{TRAINING}.method": "rloo", f"{TRAINING}.lossType": "grpo"}, "spec.training", "method grpo only",
    ),
    "folds of a reward": (
        {**GRPO, f"{TRAINING}.crossValidation": {"folds": 2}}, "spec.training", "no loss on held-out rows",
    ),
    "a reward with Unsloth": ({**GRPO, f"{TRAINING}.backend": "unsloth"}, "spec.training", "need backend transformers"),
    "a reward for plain text": ({**GRPO, f"{SOURCE}.format": "text"}, "spec", "format text has none"),
    "a reward of pairs": ({**GRPO, f"{SOURCE}.format": "preference"}, "spec", "cannot use format"),
    "a judge at no endpoint": (
        {**VALIDATION_SPLIT, "spec.evaluation.graders": [JUDGE]}, "spec.evaluation", "must be the name of one of",
    ),
    "a judge whose best number is the worst": (
        {**VALIDATION_SPLIT, "spec.evaluation": {
            "graders": [{"name": "a", "judge": {**JUDGE["judge"], "minimum": 1, "maximum": 1}}], "endpoints": [SERVER],
        }},
        "spec.evaluation.graders[0].judge", "minimum must be less than maximum",
    ),
    "an endpoint with credentials in its URL": (
        {"spec.evaluation.endpoints": [{"name": "a", "uri": "http://user:key@judges/v1"}]},
        "spec.evaluation.endpoints[0].uri", "should match",
    ),
    "an endpoint at a metadata service": (
        {"spec.evaluation.endpoints": [{"name": "a", "uri": "http://169.254.169.254/latest"}]},
        "spec.evaluation.endpoints[0]", "must not be a link-local",
    ),
    "an endpoint above its path": (
        {"spec.evaluation.endpoints": [{"name": "a", "uri": "http://judges/v1/../admin"}]},
        "spec.evaluation.endpoints[0]", "must not contain '..'",
    ),
    "an unknown task": ({"spec.evaluation.task": "poetry"}, "spec.evaluation.task", "Unsupported value"),
    "a gate with nothing to measure on": (
        {"spec.evaluation.gate": [{"metric": "evalLoss", "maximum": 1}]}, "spec", "evaluation.gate needs",
    ),
    "test data for preferences": (
        {**DPO_TRAINING, "spec.evaluation.test": TEST_DATA}, "spec", "evaluation.test needs method sft",
    ),
    "test data from nowhere": (
        {"spec.evaluation.test": {"sources": []}}, "spec.evaluation.test.sources", "at least 1",
    ),
    "test data on the own disk": (
        {"spec.evaluation.test": {"sources": [{"uri": "file:///data/test.jsonl"}]}}, "spec",
        "evaluation.test at file:// works only",
    ),
    "a gate on test data that is not there": (
        {"spec.evaluation.gate": [{"metric": "testLoss", "maximum": 1}]}, "spec", "evaluation.gate needs",
    ),
    "a gate on the validation loss with test data alone": (
        {"spec.evaluation.test": TEST_DATA, "spec.evaluation.gate": [{"metric": "evalLoss", "maximum": 1}]}, "spec",
        "except crossValidationLoss and, with evaluation.test, those that begin with test",
    ),
    "one fold": ({CROSS_VALIDATION: {"folds": 1}}, f"{CROSS_VALIDATION}.folds", "greater than or equal to 2"),
    "11 folds": ({CROSS_VALIDATION: {"folds": 11}}, f"{CROSS_VALIDATION}.folds", "less than or equal to 10"),
    "cross-validation of no folds": ({CROSS_VALIDATION: {}}, f"{CROSS_VALIDATION}.folds", "Required value"),
    "a gate on folds that are not there": (
        {**VALIDATION_SPLIT, "spec.evaluation.gate": [FOLD_LOSS_GATE]}, "spec", "needs training.crossValidation",
    ),
    "a gate on folds and on what is not measured": (
        {**FIVE_FOLDS, "spec.evaluation.gate": [FOLD_LOSS_GATE, {"metric": "evalLoss", "maximum": 1}]}, "spec",
        "needs dataset.validation for all metrics except",
    ),
    "folds better than a base that is not measured": (
        {**FIVE_FOLDS, "spec.evaluation.gate": [{"metric": "crossValidationLoss", "minImprovement": 0}]},
        "spec.evaluation.gate[0]", "minImprovement does not apply to",
    ),
    "a gate without a limit": (
        {**VALIDATION_SPLIT, "spec.evaluation.gate": [{"metric": "evalLoss"}]},
        "spec.evaluation.gate[0]", "at least one of",
    ),
    "a prompt of nothing": ({"spec.evaluation.samplePrompts": [""]}, "spec.evaluation.samplePrompts[0]", "at least 1"),
    "17 prompts": ({"spec.evaluation.samplePrompts": ["a"] * 17}, "spec.evaluation.samplePrompts", "at most 16"),
    "a term without a counterpart": (
        {"spec.evaluation.bias": {"terms": [["nurse"]]}}, "spec.evaluation.bias.terms[0]", "at least 2",
    ),
    "pairs from many places": (
        {"spec.evaluation.bias": {"pairsURI": "s3://data/*.csv"}}, "spec.evaluation.bias", "must not contain",
    ),
    "counterfactual preferences": (
        {**DPO_TRAINING, f"{PREPARATION}.counterfactuals": ["gender"]}, "spec",
        "counterfactuals applies to method sft only",
    ),
    "an unknown group": (
        {f"{PREPARATION}.counterfactuals": ["height"]}, f"{PREPARATION}.counterfactuals[0]", "Unsupported"),
    "a quantized model to merge": (
        {"spec.model.quantization": "nf4", "spec.output.merged": True}, "spec", "output.merged needs",
    ),
    "an unknown GGUF type": (
        {"spec.output.gguf": "q4_k_m"}, "spec.output.gguf", "Unsupported",
    ),
    "a GGUF file of a DoRA adapter": (
        {"spec.output.gguf": "f16", "spec.training.lora.variant": "dora"}, "spec", "output.gguf needs output.merged",
    ),
    "a GGUF file of trained tokens": (
        {"spec.output.gguf": "f16", "spec.training.lora.trainableTokens": ["<|im_end|>"]}, "spec",
        "output.gguf needs output.merged",
    ),
    "signed by any key": (
        {"spec.output.signing": {"keySecretRef": {"name": "keys", "key": "tls.key"}}},
        "spec.output.signing.keySecretRef.key", "unknown field",
    ),
    "signed by another namespace": (
        {"spec.output.signing": {"keySecretRef": {"name": "a/b"}}},
        "spec.output.signing.keySecretRef.name", "should match",
    ),
    # tracking
    "tracked by nothing": ({"spec.tracking": {"uri": "http://a"}}, "spec.tracking.tool", "Required value"),
    "tracked by something else": ({"spec.tracking": {"tool": "neptune"}}, "spec.tracking.tool", "Unsupported value"),
    "MLflow nowhere": ({"spec.tracking": {"tool": "mlflow"}}, "spec.tracking", "tool mlflow needs uri"),
    "MLflow in a folder": (
        {"spec.tracking": {"tool": "mlflow", "uri": "file:///tmp"}}, "spec.tracking.uri", "should match",
    ),
    "a password in the address": (
        {"spec.tracking": {"tool": "mlflow", "uri": "https://me:word@mlflow"}}, "spec.tracking.uri", "should match",
    ),
    "W&B without a key": ({"spec.tracking": {"tool": "wandb"}}, "spec.tracking", "wandb needs credentialsSecretRef"),
    "TensorBoard with an address": (
        {"spec.tracking": {"tool": "tensorboard", "uri": "http://tb"}}, "spec.tracking", "remove uri and experiment",
    ),
    "TensorBoard with a key": (
        {"spec.tracking": {"tool": "tensorboard", "credentialsSecretRef": {"name": "k"}}}, "spec.tracking",
        "does not use credentialsSecretRef",
    ),
    "101 attempts": ({"spec.backoffLimit": 101}, "spec.backoffLimit", "less than or equal to 100"),
}  # fmt: skip
