"""Evaluation: the tuned model compared with its base model, and how reliable the comparison is."""
