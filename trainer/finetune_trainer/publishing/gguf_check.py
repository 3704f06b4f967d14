"""Compares GGUF files with the safetensors and the tokenizer that they were converted from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import ADAPTER_WEIGHTS_NAME
from finetune_trainer.publishing.gguf_reader import GgufFile, GgufTensor, read_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Matrix = npt.NDArray[np.float32]
    Loader = Callable[[], Matrix]
    Shape = tuple[int, ...]

_ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 1 / 254 + 2.0**-11}
"""Largest error of a value as a share of it; for q8_0 as a share of the largest value of its row."""
_SMALLEST_F16 = 2.0**-24
_LAYER = re.compile(r"(?:^|\.)(?:blk|layers|h|blocks)\.(\d+)\.")
_NEWLINE_TOKEN = "<0x0A>"
"""A token that all vocabularies of SentencePiece with tokens of bytes have."""
_EMBEDDINGS = ("token_embd.weight", "output.weight")


def check_adapter(path: Path, adapter_dir: Path, alpha: float) -> None:
    """Raise `INTERNAL_ERROR` unless a file has all matrices of an adapter and this alpha."""
    gguf = _read(path)
    with ExitStack() as stack:
        sources = _open_tensors([adapter_dir / ADAPTER_WEIGHTS_NAME], stack)
        if len(gguf.tensors) != len(sources):
            raise _error(path, f"it has {len(gguf.tensors)} matrices, the adapter {len(sources)}")
        found_alpha = gguf.metadata.get("adapter.lora.alpha")
        if found_alpha is None or abs(found_alpha - alpha) > 1e-5 * alpha:
            raise _error(path, f"its alpha is {found_alpha}, that of the adapter {alpha:g}")
        _compare(path, gguf.tensors, sources)


def check_model(path: Path, model_dir: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `INTERNAL_ERROR` unless metadata, embeddings and matrices of a file equal those of a model.

    The matrices of the first, the middle and the last layer are compared.
    """
    gguf = _read(path)
    _check_tokenizer(path, gguf.metadata, tokenizer)
    with ExitStack() as stack:
        sources = _open_tensors(sorted(model_dir.glob("*.safetensors")), stack)
        _compare(path, _sample_matrices(gguf), sources)


def _read(path: Path) -> GgufFile:
    try:
        return read_gguf(path)
    except ValueError as error:
        raise _error(path, str(error)) from error


def _check_tokenizer(path: Path, metadata: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    template = tokenizer.chat_template
    if isinstance(template, str) and metadata.get("tokenizer.chat_template") != template:
        raise _error(path, "its chat template is not that of the tokenizer")
    if metadata.get("tokenizer.ggml.eos_token_id") != tokenizer.eos_token_id:
        found = metadata.get("tokenizer.ggml.eos_token_id")
        raise _error(path, f"its EOS token is {found}, that of the tokenizer {tokenizer.eos_token_id}")
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    if metadata.get("tokenizer.ggml.model") == "llama" and _NEWLINE_TOKEN not in tokens:  # llama.cpp aborts
        raise _error(path, "the converter took its tokenizer for one of SentencePiece, but it has no tokens of bytes")
    if len(tokens) < len(tokenizer):
        raise _error(path, f"its vocabulary has less than the {len(tokenizer)} tokens of the tokenizer")


def _sample_matrices(gguf: GgufFile) -> dict[str, GgufTensor]:
    layers = sorted({layer for name in gguf.tensors if (layer := _get_layer(name)) is not None})
    sampled = {layers[0], layers[len(layers) // 2], layers[-1]} if layers else set()
    return {
        name: tensor
        for name, tensor in gguf.tensors.items()
        if len(tensor.shape) == 2 and (name in _EMBEDDINGS or _get_layer(name) in sampled)
    }


def _get_layer(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def _open_tensors(paths: Sequence[Path], stack: ExitStack) -> dict[str, tuple[Shape, Loader]]:
    """Return shape and loader of each tensor. Values are read only when they are compared."""
    from safetensors import safe_open

    sources: dict[str, tuple[Shape, Loader]] = {}
    for path in paths:
        file = stack.enter_context(safe_open(str(path), "pt"))
        for name in file.keys():  # noqa: SIM118
            sources[name] = (tuple(file.get_slice(name).get_shape()), _make_loader(file, name))
    return sources


def _make_loader(file: Any, name: str) -> Loader:  # noqa: ANN401
    return lambda: file.get_tensor(name).float().numpy()


def _compare(path: Path, tensors: Mapping[str, GgufTensor], sources: Mapping[str, tuple[Shape, Loader]]) -> None:
    """Raise unless each tensor equals one of the same layer and shape in `sources`, each of which is used once."""
    candidates = defaultdict(list)
    for name, (shape, load) in sources.items():
        candidates[_get_kind(name), shape].append(load)
    for name, tensor in tensors.items():
        key = (_get_kind(name), tensor.shape)
        if name.endswith("token_embd.weight.lora_a"):  # llama.cpp looks up its rows
            key = (key[0], tensor.shape[::-1])
        matching = _find_source(tensor, candidates[key])
        if matching is None:
            raise _error(path, f"{name} differs from all matrices of its layer and shape")
        if name not in _EMBEDDINGS:  # the output head may share the embeddings
            candidates[key].remove(matching)


def _get_kind(name: str) -> tuple[int | None, str]:
    """Return the layer, and which of the two matrices of an adapter this is."""
    lower = name.lower()
    return _get_layer(name), "a" if "lora_a" in lower else "b" if "lora_b" in lower else ""


def _find_source(tensor: GgufTensor, loaders: Sequence[Loader]) -> Loader | None:
    values = tensor.read()
    return next((load for load in loaders if _is_same(values, load(), tensor.type_name)), None)


def _is_same(values: Matrix, source: Matrix, type_name: str) -> bool:
    """Return whether values equal their source within the rounding, in the same or in another order of rows.

    The converter changes the order of the rows of queries and keys of some models, for the rotary embedding.
    """
    if source.shape != values.shape:
        source = source.T
    share = _ROUNDING[type_name]
    largest = np.abs(source).max(axis=-1, keepdims=True)
    errors: Matrix = (share * (largest if type_name == "q8_0" else np.abs(source)) + _SMALLEST_F16).astype(np.float32)
    if bool((np.abs(values - source) <= errors).all()):
        return True
    return all(
        bool((np.abs(found - expected) <= limit).all()) for found, expected, limit in _summarize(values, source, errors)
    )


def _summarize(values: Matrix, source: Matrix, errors: Matrix) -> Iterator[tuple[Matrix, Matrix, Matrix]]:
    """Yield the sorted norms of rows and the sums of columns of both, with the error that rounding can cause."""
    full_errors = np.broadcast_to(errors, source.shape)
    norms, source_norms = np.linalg.norm(values, axis=-1), np.linalg.norm(source, axis=-1)
    order = np.argsort(source_norms)
    limit = np.linalg.norm(full_errors, axis=-1).max()
    yield np.sort(norms), source_norms[order], np.full_like(source_norms, limit)
    yield values.sum(axis=0), source.sum(axis=0), full_errors.sum(axis=0) + 1e-5 * np.abs(source).sum(axis=0)


def _error(path: Path, difference: str) -> TrainerError:
    message = f"{path.name} is not published, because it differs from what it was converted from: {difference}"
    return TrainerError(Reason.INTERNAL_ERROR, message)
