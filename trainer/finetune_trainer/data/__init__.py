"""Data preparation: from the rows of the sources to tokens on disk.

`preparation` runs all steps, in this order:

- `readers` and `row_reader` read rows; `formats`, `conversations` and `preferences` check and convert them.
- `cleaning`, `pii` and `augment` normalize, redact and augment them.
- `deduplication` finds duplicates; `shingles` finds the boilerplate that it ignores.
- `template_settings` sets up the chat template; `bundled_templates` has those of TRL.
- `loss_masking` renders, tokenizes and masks them; `tokenized_rows` enforces the length limits.
- `split_writer` runs the steps for one split; `splits` and `folds` divide the rows.
- `rejections` counts the rejected rows; `preparation_report` accounts for all rows.
"""
