"""Training of the adapter with the trainers of TRL."""
