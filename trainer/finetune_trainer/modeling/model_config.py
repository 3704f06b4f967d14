"""The config.json of a base model, and the class of transformers that it describes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.library_errors import translate_model_errors

if TYPE_CHECKING:
    from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

_OTHER_TASKS = ("Classification", "QuestionAnswering", "MaskedLM", "RewardModel", "ImageGeneration")
"""Ends of names of classes that do not predict the next token."""
_GENERATING_CLASSES = ("ForConditionalGeneration", "ForCausalLM")
"""Ends of names of multimodal classes that predict the next token. Others diffuse blocks, or encode and decode."""

_HEADLESS_SUFFIX = "Model"
"""End of names of classes without an output head. Those of GPT-2 and others with a head end in `LMHeadModel`."""
_LAYERS_KEY = "num_hidden_layers"
_MAX_LAYERS = 1000
"""Published models have less than 200. transformers creates all layers before it compares them with the weights."""


def load_model_config(model_dir: Path) -> PreTrainedConfig:
    """Read config.json. Raises `MODEL_INVALID` for an architecture that transformers does not know, or too many
    layers."""
    from transformers import AutoConfig, PreTrainedConfig

    with translate_model_errors():
        _check_model_type(PreTrainedConfig.get_config_dict(str(model_dir), local_files_only=True)[0].get("model_type"))
        config = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False, local_files_only=True)
        _check_layer_count(config.get_text_config())
    return config


def _check_model_type(model_type: object) -> None:
    """Raise for a family that transformers does not know: its own message advises to install another version."""
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if str(model_type) not in CONFIG_MAPPING_NAMES:
        problem = f"transformers {__version__} does not know the model_type {model_type!r} in its config.json"
        raise ValueError(f"{problem}; use a model of a family that it knows, such as llama, qwen3, mistral or gemma3")


def _check_layer_count(text_config: PreTrainedConfig | dict[str, Any]) -> None:
    if isinstance(text_config, dict):
        message = "its config.json has a text_config, but its model_type is a family without parts"
        raise TrainerError(Reason.MODEL_INVALID, f"the base model cannot be loaded: {message}")
    count = text_config.to_dict().get(text_config.attribute_map.get(_LAYERS_KEY, _LAYERS_KEY))
    if isinstance(count, int) and count > _MAX_LAYERS:
        raise ValueError(f"its config.json has {count} layers, more than {_MAX_LAYERS}; check {_LAYERS_KEY}")


def choose_model_class(config: PreTrainedConfig) -> type[AutoModel]:
    """Return the auto class that loads the class in `architectures` of config.json, which is also what servers load:
    the names of the weights of an adapter depend on it.

    A config that names no class, or one that transformers does not know, gets the class for its `model_type`, with all
    parts of a multimodal model. Raises `MODEL_UNSUPPORTED` for a class that is no decoder-only language model.
    """
    if _is_encoder(config):
        raise _unsupported_class_error(config, "no decoder: is_decoder is false in its config.json")
    architecture = (config.architectures or [""])[0]
    causal, multimodal = _find_causal_class(config), _find_multimodal_class(config)
    classes = [auto_class for auto_class, name in (causal, multimodal) if name == architecture and auto_class]
    if classes:
        return classes[0]
    if architecture.endswith(_HEADLESS_SUFFIX) and not architecture.endswith(f"LMHead{_HEADLESS_SUFFIX}"):
        raise _unsupported_class_error(config, "a class that has no output head, as of embedding models")
    is_other_task = architecture.endswith(_OTHER_TASKS) or config.is_encoder_decoder
    classes = [auto_class for auto_class, _ in (multimodal, causal) if auto_class]
    if is_other_task or not classes:
        raise _unsupported_class_error(config, "no decoder-only language model")
    return classes[0]


def _is_encoder(config: PreTrainedConfig) -> bool:
    """Return whether each token attends to the tokens after it. GPT-NeoX has `is_decoder` too, but is no encoder."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    is_known = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    return is_known and config.to_dict().get("is_decoder") is False


def build_meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model of a config on the `meta` device, without weights. Its layers are not quantized.

    Raises `MODEL_INVALID` for a config that transformers cannot build a model of.
    """
    import torch

    plain_config = copy.deepcopy(config)
    if "quantization_config" in vars(plain_config):
        del plain_config.quantization_config
    model_class = choose_model_class(plain_config)
    with translate_model_errors(), torch.device("meta"):
        try:
            return model_class.from_config(plain_config, trust_remote_code=False)
        except KeyError as error:  # transformers looks types of RoPE and activations up by their names
            raise _unknown_value_error(plain_config, error) from error
        except RuntimeError as error:  # neither memory nor a GPU is used, so that only a size can be wrong
            raise ValueError(f"a size in its config.json is invalid: {error}") from error


def _unknown_value_error(config: PreTrainedConfig, error: KeyError) -> ValueError:
    """Return the error for a name in config.json, of a text or of a dictionary in it, that transformers lacks."""
    name, values = error.args[0], config.get_text_config().to_dict()
    fields = values | {
        f"{key}.{part}": value
        for key, parts in values.items()
        if isinstance(parts, dict)
        for part, value in parts.items()
    }
    keys = [key for key, value in fields.items() if value == name]
    if not keys:
        return ValueError(f"its config.json lacks {name}")
    return ValueError(f"transformers does not know {name!r}, the value of {keys[0]} in its config.json")


def _find_causal_class(config: PreTrainedConfig) -> tuple[type[AutoModel] | None, str]:
    """Return the auto class and the name of the class that it loads, or None."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None, ""
    return AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__


def _find_multimodal_class(config: PreTrainedConfig) -> tuple[type[AutoModel] | None, str]:
    """Return the auto class and the name of the class that it loads, or None."""
    from transformers import MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForMultimodalLM

    known = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    name = MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)].__name__ if known else ""
    return (AutoModelForMultimodalLM, name) if name.endswith(_GENERATING_CLASSES) else (None, "")


def _unsupported_class_error(config: PreTrainedConfig, problem: str) -> TrainerError:
    architecture = (config.architectures or [config.model_type])[0]
    message = (
        f"the base model is {architecture} (model_type {config.model_type}), which is {problem}; use a model that "
        "transformers loads for text generation, such as the Llama, Qwen, Mistral or Gemma families"
    )
    return TrainerError(Reason.MODEL_UNSUPPORTED, message)
