"""Generator of the CRD, install.yaml and the API reference from the API types."""
