"""Quantization of the frozen base model with bitsandbytes. Heavy imports happen inside functions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.adapter_targets import strip_layer_number
from finetune_trainer.modeling.language_part import find_language_prefix

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

_MAX_NAMES = 3


class QuantizationCoverageError(TrainerError):
    """Too few weights of the base model are quantized. It depends on the sizes in its config.json."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.CONFIG_INVALID, message)


@dataclass(frozen=True)
class QuantizationCoverage:
    """The weights of linear layers and fused experts, without the output head, that are quantized and that are not."""

    quantized: int
    """Number of quantized weights."""
    unquantized: Counter[str]
    """Number of the other weights, by the name of the parameter without its layer."""

    @property
    def fraction(self) -> float:
        """Share of the weights that is quantized, which is 0 if there are none."""
        return self.quantized / total if (total := self.quantized + self.unquantized.total()) else 0.0

    def describe_unquantized(self) -> str:
        """Return the largest parameters that are not quantized, with their share of the weights."""
        total = self.quantized + self.unquantized.total()
        names = [f"{name} ({count / total:.1%})" for name, count in self.unquantized.most_common(_MAX_NAMES)]
        others = len(self.unquantized) - len(names)
        return ", ".join([*names, *([f"{others} others"] if others > 0 else [])])


def build_quantization_config(config: TrainerConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return the quantization config for transformers, or None."""
    from transformers import BitsAndBytesConfig

    if config.model.quantization == "none":
        return None
    if config.model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def check_quantization(config: TrainerConfig, base: PreTrainedModel, backend: str) -> None:
    """Raise `CONFIG_INVALID` if less than `model.minQuantizedFraction` of a loaded base model is quantized, and
    `MODEL_INVALID` if its config.json says that its weights are stored quantized, but they are not.

    Some loaders leave layers in 16 bits without a message.
    """
    if config.model.quantization == "none":
        return
    from bitsandbytes.nn.modules import Linear4bit

    # It logs for every layer in every step that inputs are cast to 16 bits, as int8 requires.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    _check_coverage(config, base, backend)
    _check_states(base)
    for layer in base.modules():
        if isinstance(layer, Linear4bit):
            # On a CPU it would repack its weights at the first evaluation and compute wrong gradients from then on.
            layer.support_avx512bf16_for_cpu = False


def check_planned_quantization(
    config: TrainerConfig, model_config: PreTrainedConfig, meta_model: PreTrainedModel
) -> None:
    """Raise `CONFIG_INVALID` if transformers would quantize less than `model.minQuantizedFraction` of a base model on
    the `meta` device. Its linear layers are replaced as before the weights are loaded.

    bitsandbytes skips fused experts (https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1849).
    """
    import torch
    from transformers.quantizers import AutoHfQuantizer

    if config.model.quantization == "none":
        return
    stored = vars(model_config).get("quantization_config")
    settings = stored or build_quantization_config(config, torch.float32)
    quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=stored is not None)
    quantizer.preprocess_model(meta_model, device_map=None)
    _check_coverage(config, meta_model, "transformers")


def _check_coverage(config: TrainerConfig, base: PreTrainedModel, backend: str) -> None:
    coverage = measure_quantization(config, base)
    if coverage.fraction < config.model.min_quantized_fraction:
        if not coverage.quantized and backend == "unsloth":
            message = (
                f"training.backend unsloth loads no {config.model.quantization} model on this machine, such as int8 on "
                "a CPU; set training.backend to transformers"
            )
            raise TrainerError(Reason.CONFIG_INVALID, message)
        raise QuantizationCoverageError(_build_error_message(config, coverage))


def _check_states(base: PreTrainedModel) -> None:
    """Raise `MODEL_INVALID` if a layer has no quantized weights, as if they are stored in 16 bits, but config.json has
    the `quantization_config` of a copy that was quantized."""
    from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    paths = [
        path
        for path, layer in base.named_modules()
        if (isinstance(layer, Linear4bit) and not isinstance(layer.weight, Params4bit))
        or (isinstance(layer, Linear8bitLt) and not isinstance(layer.weight, Int8Params))
    ]
    if paths:
        message = (
            "the base model does not match its config.json: quantization_config says that it is stored quantized, but "
            f"{len(paths)} layers such as {paths[0]} have plain weights; remove quantization_config from this file"
        )
        raise TrainerError(Reason.MODEL_INVALID, message)


def measure_quantization(config: TrainerConfig, base: PreTrainedModel) -> QuantizationCoverage:
    """Return which weights of a base model are quantized. It may have an adapter, which does not count."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    expected_type = Linear4bit if config.model.quantization == "nf4" else Linear8bitLt
    quantized, unquantized = 0, Counter[str]()
    for path, module, count in _iterate_weights(base):
        if isinstance(module, expected_type):
            quantized += count
        else:
            unquantized[strip_layer_number(path)] += count
    return QuantizationCoverage(quantized, unquantized)


def compute_quantizable_fraction(base: PreTrainedModel) -> float:
    """Return the share of the weights in layers that transformers replaces by quantized ones. The base model is not
    quantized, and may be on the `meta` device."""
    import torch
    from transformers.pytorch_utils import Conv1D

    counts = Counter[bool]()
    for _, module, count in _iterate_weights(base):  # subclasses of Linear, as in Falcon, are not replaced
        counts[type(module) is torch.nn.Linear or isinstance(module, Conv1D)] += count
    return counts[True] / max(counts.total(), 1)


def _iterate_weights(base: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module, int]]:
    """Yield the path, module and number of weights of each linear layer and each stack of matrices of the language
    part."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head, language_prefix = base.get_output_embeddings(), find_language_prefix(base)
    head_modules = set() if head is None else set(head.modules())
    for path, module in base.named_modules():
        if not path.startswith(language_prefix) or module in head_modules:
            continue
        if ".lora_" in path or isinstance(module, torch.nn.modules.conv._ConvNd):
            continue
        clean_path = path.replace(".base_layer", "")
        if isinstance(module, torch.nn.Linear):  # quantized weights are packed, so that their number differs
            yield clean_path, module, module.in_features * module.out_features
        elif isinstance(module, Conv1D):
            yield clean_path, module, module.weight.numel()
        else:
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    yield f"{clean_path}.{name}", module, parameter.numel()


def _build_error_message(config: TrainerConfig, coverage: QuantizationCoverage) -> str:
    model = config.model
    return (
        f"model.quantization {model.quantization} covers {coverage.fraction:.1%} of the weights of linear layers and "
        f"experts on this machine, less than model.minQuantizedFraction {model.min_quantized_fraction}; "
        f"{coverage.describe_unquantized() or 'it has no such layers'} would stay unquantized; set "
        f"model.quantization to none, or lower model.minQuantizedFraction if there is enough memory"
    )
