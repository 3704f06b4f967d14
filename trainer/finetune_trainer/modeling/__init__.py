"""Base models and their adapters: loading, quantization, precision, likelihoods and generation."""
