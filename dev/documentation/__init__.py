"""The documentation site: hooks of MkDocs, and generators of reference pages."""
