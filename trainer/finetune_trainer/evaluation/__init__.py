"""What the tuned model can do beside its base, and whether that is to be trusted."""
