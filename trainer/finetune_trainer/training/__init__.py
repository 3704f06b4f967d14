"""Training itself, by TRL's trainers."""
