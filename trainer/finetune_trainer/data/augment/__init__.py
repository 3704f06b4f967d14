"""Counterfactual data augmentation."""
