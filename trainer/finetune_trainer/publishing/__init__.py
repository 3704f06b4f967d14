"""Export, merge, signature and upload of results, and the lock on the output."""
