"""Results of a run for people and tools: the model card, the report page and the provenance."""
