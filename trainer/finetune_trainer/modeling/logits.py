"""Computes the logits of some tokens of a batch. Imports torch, so import this module only after the backend.

The logits of all tokens need far more memory than everything else in a forward pass without gradients. `run_decoder`
therefore keeps the hidden states, and the model's own `forward` computes the logits of some of them on demand. So the
logits are those of the class, whatever it does with hidden states and logits: Granite, Cohere, Gemma and MiniCPM scale
or cap them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

LogitsAt = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes the row numbers and the positions of n tokens, and returns their logits: shape (n, vocabulary)."""

_CHECKED_TOKENS = 32
_LOGIT_TOLERANCE = 0.01
"""Largest difference of a logit, as a share of the largest logit: rounding in 16 bits causes up to 0.004."""


def compute_logits(model: PeftModel | PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> LogitsAt:
    """Compute the logits of all tokens at once. The tensors of `inputs` have the shape (rows, tokens)."""
    logits = model(**inputs, use_cache=False).logits
    return lambda row_numbers, positions: logits[row_numbers, positions]


def run_decoder(model: PeftModel | PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> LogitsAt:
    """Compute the hidden states of all tokens, and logits on demand. The tensors have the shape (rows, tokens).

    Raises `ValueError` if the class of the model does not call its decoder once, or if that returns a tuple.
    """
    decoder = _get_decoder(model)
    outputs: list[ModelOutput] = []

    def keep_first_token(_module: torch.nn.Module, _args: object, output: object) -> ModelOutput | None:
        if not isinstance(output, ModelOutput):
            return None
        outputs.append(output)
        return _replace_hidden_states(output, output.last_hidden_state[:, :1])

    hook = decoder.register_forward_hook(keep_first_token)
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    if len(outputs) != 1:
        raise ValueError(f"the decoder of the model returned {len(outputs)} outputs with hidden states, expected 1")
    return lambda row_numbers, positions: _compute_logits_from_hidden_states(
        model, outputs[0], outputs[0].last_hidden_state[row_numbers, positions]
    )


def matches_own_logits(model: PeftModel | PreTrainedModel, input_ids: Sequence[int]) -> bool:
    """Return whether `run_decoder` gives the logits of the model, for the first tokens of a row.

    It does not for OPT, whose class calls a part of its decoder directly.
    """
    checked = torch.tensor([input_ids[:_CHECKED_TOKENS]], device=model.device)
    inputs = {"input_ids": checked, "attention_mask": torch.ones_like(checked)}
    # In reverse, so that a class whose logits depend on the order of the tokens after the decoder does not match.
    positions = torch.arange(checked.shape[1], device=model.device).flip(0)
    row_numbers = torch.zeros_like(positions)
    expected = compute_logits(model, inputs)(row_numbers, positions).float()
    try:
        actual = run_decoder(model, inputs)(row_numbers, positions).float()
    except ValueError:
        return False
    return bool((actual - expected).abs().max() <= _LOGIT_TOLERANCE * expected.abs().max())


def _get_decoder(model: PeftModel | PreTrainedModel) -> torch.nn.Module:
    base_model = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder: torch.nn.Module = base_model.base_model
    return decoder


def _compute_logits_from_hidden_states(
    model: PeftModel | PreTrainedModel, output: ModelOutput, hidden_states: torch.Tensor
) -> torch.Tensor:
    """Call the model with a decoder that returns hidden states of shape (n, hidden). Returns (n, vocabulary)."""
    replacement = _replace_hidden_states(output, hidden_states[None])
    input_ids = torch.zeros((1, len(hidden_states)), dtype=torch.int64, device=hidden_states.device)  # not read
    with _replace_forward(_get_decoder(model), lambda *_, **__: replacement):
        logits: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits[0]


def _replace_hidden_states(output: ModelOutput, hidden_states: torch.Tensor) -> ModelOutput:
    return replace(output, last_hidden_state=hidden_states)


@contextmanager
def _replace_forward(module: torch.nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Replace the `forward` of a module object, which libraries may have replaced before."""
    previous = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if previous is None:
            del module.forward
        else:
            module.forward = previous
