"""Cache of base models on a volume that pods share.

`v1/DIGEST/model/` contains the files of a model, and `v1/DIGEST/cache.json` their digests. An entry appears complete,
by a rename, and is never changed. Names that begin with a dot are those of entries that are being filled or removed.
"""
