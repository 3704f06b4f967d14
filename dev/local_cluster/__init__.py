"""A real one-node Kubernetes and a real S3 server on one Linux machine, without Docker."""
