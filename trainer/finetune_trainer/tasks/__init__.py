"""Work in S3 outside of a run, done by task pods. Their image has no torch, so that they start in seconds."""
