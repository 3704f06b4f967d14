"""The recipe: how a config is turned into a trained adapter, as a number.

It rises when the same config on the same inputs trains something else: other labels, another loss, another order of
rows, another reference model. Results of every recipe are found by their config digest. A checkpoint is resumed only by
a trainer of its own recipe, since a run that changes its recipe half way is neither.

1. Version 0.1.0 up to November 2026.
2. What ends an answer is always learnt; the loss is the cross-entropy of the model's own logits, without the router's
   auxiliary loss; rows longer than the model's positions are overlength; shared instructions do not make rows
   near-duplicates.
"""

RECIPE = 2
FIRST_RECIPE = 1
"""The recipe of checkpoints and manifests that name none."""
