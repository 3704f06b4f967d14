"""From the data's rows to tokens on disk: read, cleaned, compared, split, labelled, and accounted for."""
