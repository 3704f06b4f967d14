"""The version of the training recipe: how a config and its inputs become an adapter.

Increment it when the same config and inputs train something different: other labels, another loss, another order of
rows, another reference model. Results of all recipes are found by their config digest. A checkpoint is resumed only by
a trainer with the same recipe, so that no run mixes two recipes.

1. Version 0.1.0 until November 2026.
2. The end of an answer is always supervised; the loss is the cross-entropy of the model's own logits, without the
   auxiliary loss of a router; rows longer than the positions of the model are overlength; shared instructions do not
   make rows near-duplicates.
3. `dpo` and `kto` that continue from an adapter keep this adapter as the reference model, instead of the base model;
   `all-linear` leaves out routers, modules whose weights are read without their adapter, and the vision and audio parts
   of multimodal models; the loss of a step does not depend on the gradient accumulation for any model; chat
   templates write a fixed date; `dpo` and `kto` train without any dropout of the base model.
4. Rows whose answer equals the question are kept; control tokens that are typed in texts are encoded as ordinary text;
   chat templates write the date of the first attempt; tool calls, tool definitions and reasoning are rendered;
   `developer` turns become system turns where the template does not write them.
"""

RECIPE = 4
FIRST_RECIPE = 1
"""The recipe of checkpoints and manifests that do not name one."""
