"""What was found, for people: the model card, the page, the provenance."""
