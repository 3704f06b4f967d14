"""Planning: what a run would do and need."""
