"""Access to the API server: client, informer cache, lists and leader election."""
