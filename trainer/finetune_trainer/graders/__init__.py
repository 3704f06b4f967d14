"""Graders: they score answers from 0 to 1, as `evaluation.graders` describes."""
