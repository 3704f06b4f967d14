"""Watches FineTuneJob resources and runs one trainer Job for each."""
