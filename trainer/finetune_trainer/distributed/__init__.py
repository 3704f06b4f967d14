"""Training of one model by several processes (ranks), on one or more nodes."""
