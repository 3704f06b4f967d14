"""A local cluster for tests and the demo: a one-node Kubernetes and an S3 server on Linux, without Docker."""
