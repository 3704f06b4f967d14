"""What each page shows: pure functions from objects of the client to the context of a template."""
