"""Several processes, on one node or more, that train one model together."""
