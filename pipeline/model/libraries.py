"""Nets of timm and of Hugging Face's transformers, made from their names or configs: nothing is downloaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pipeline.errors import PipelineError, first_line, is_out_of_memory
from pipeline.model.shapes import image_shape
from pipeline.validation import check_count, check_text

HEADS_OF_TOKENS = (
    "CausalLM",
    "MaskedLM",
    "Seq2SeqLM",
    "PreTraining",
)  # whose outputs are as many as the vocabulary


def timm_net(name: str, input_shape: Sequence[int], num_outputs: int, **options: Any) -> nn.Module:
    """A net of timm with random weights, for images (channels, height, width).

    name: as `timm.list_models()` has it. options: of its architecture, such as `drop_rate`.

    Raises:
        PipelineError: the library is not installed, or has no net of that name or no such option.
    """
    check_text("model.name", name, "resnet10t")
    channels = image_shape("timm", input_shape, num_outputs)[0]
    timm = _library("timm", "timm")
    if not timm.is_model(name):
        raise PipelineError(
            f"model.name={name}: timm has no net of that name{_near(name, timm.list_models())}"
        )
    try:
        net: nn.Module = timm.create_model(
            name, pretrained=False, **{"num_classes": num_outputs, "in_chans": channels, **options}
        )
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise PipelineError(f"model=timm cannot make {name}: {_line(error)}: {_remedy(options)}.") from error
    return net


def hugging_face_net(
    config: str, input_shape: Sequence[int], num_outputs: int, head: str = "CausalLM", **options: Any
) -> nn.Module:
    """A net of transformers with random weights.

    config: a type of model, such as gpt2, bert or vit, whose default config is taken; or a folder with a config.json.
    head: the class is AutoModelFor<head>. options: of the config, such as `n_layer`.
    A head of classes or values gets `num_outputs` as `num_labels`; a config of images gets the data's size and number
    of channels.

    Raises:
        PipelineError: the library is not installed, or has no such type, head or option.
    """
    check_text("model.config", config, "gpt2")
    check_text("model.head", head, "CausalLM")
    check_count("model.num_outputs", num_outputs)
    transformers = _library("transformers", "huggingface")
    transformers.logging.set_verbosity_error()
    default = _config(transformers, config, {})
    for option in options:
        if not hasattr(default, option):
            known = [name for name in default.to_dict() if not name.startswith("_")]
            raise PipelineError(
                f"model.{option}: the config of {config} has no such option{_near(option, known)}"
            )
    sizes: dict[str, Any] = {} if head in HEADS_OF_TOKENS else {"num_labels": num_outputs}
    if hasattr(default, "image_size") and len(input_shape) == 3:
        sizes |= {"num_channels": input_shape[0], "image_size": input_shape[1]}
    made = _config(transformers, config, {**sizes, **options})
    if hasattr(made, "use_cache"):
        made.use_cache = False  # a cache serves the next token alone
    kind = getattr(transformers, f"AutoModelFor{head}", None)
    heads = _heads(transformers, made)
    if kind is None or head not in heads:
        raise PipelineError(
            f"model.head={head}: transformers has none of {config}: choose one of {', '.join(heads) or 'none'}."
        )
    try:
        net: nn.Module = kind.from_config(made)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise PipelineError(
            f"model=huggingface cannot make {config}: {_line(error)}: {_remedy(options)}."
        ) from error
    return net


def _config(transformers: ModuleType, name: str, options: dict[str, Any]) -> Any:
    folder = Path(name).expanduser()
    try:
        if folder.exists():
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **options)
        if name in transformers.CONFIG_MAPPING:
            return transformers.AutoConfig.for_model(name, **options)
    except Exception as error:  # configs check themselves by errors of many kinds
        raise PipelineError(f"model.config={name}: {_line(error)}: {_remedy(options)}.") from error
    raise PipelineError(
        f"model.config={name}: neither a folder with a config.json nor a type of model of transformers"
        f"{_near(name, list(transformers.CONFIG_MAPPING))}"
    )


def _heads(transformers: ModuleType, config: Any) -> list[str]:
    """What comes after AutoModelFor in the classes that have a net of this config."""
    prefix = "AutoModelFor"
    names = [name for name in dir(transformers) if name.startswith(prefix)]
    return [
        name.removeprefix(prefix)
        for name in names
        if type(config) in (getattr(getattr(transformers, name), "_model_mapping", None) or ())
    ]


def _library(name: str, choice: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise PipelineError(
            f"model={choice} needs the library {name}, which cannot be imported ({_line(error)}): "
            f"pip install {name}, or pip install '.[nets]' for all of them."
        ) from error


def _near(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3)
    return f", did you mean {' or '.join(close)}?" if close else "."


def _remedy(options: dict[str, Any]) -> str:
    return f"look at {', '.join(f'model.{name}' for name in options) or 'its options'}"


def _line(error: Exception) -> str:
    return first_line(error).rstrip(".:")
