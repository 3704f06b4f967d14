"""The command line of finetune-operator: `finetune`, and `kubectl finetune`."""
