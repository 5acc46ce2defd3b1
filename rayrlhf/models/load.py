"""The four models, from a directory, a hub name or a configuration; always fp32 masters with dropout off."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rayrlhf.errors import ModelError, in_one_line
from rayrlhf.models.attention import check_attention, implementation
from rayrlhf.models.classes import causal_class, decoder_config, scalar_class
from rayrlhf.models.heads import HEADS_FILE, put_heads, scalar_head

UNLOADABLE = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, AssertionError, ImportError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
"""What transformers raises at models it cannot make or read."""

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "model.safetensors.index.json")


def check_model_dir(path: str, *, role: str) -> None:
    """ModelError unless `path` is a directory with a configuration and weights, or may be a hub name."""
    directory = Path(path)
    if not directory.is_dir():
        if path.startswith((".", "~", os.sep)) or path.count("/") > 1 or path.endswith("/"):
            raise ModelError(f"The {role} directory {path} does not exist.")
        return
    if not (directory / "config.json").is_file():
        raise ModelError(f"The {role} directory {path} holds no config.json.")
    if not any(next(directory.glob(pattern), None) for pattern in _WEIGHTS):
        raise ModelError(f"The {role} directory {path} holds no weights (no *.safetensors file).")


def check_loadable(path: str, *, role: str) -> None:
    """ModelError unless `path`, a directory or a hub name, has weights and a configuration that transformers reads."""
    check_model_dir(path, role=role)
    read_config(path, role=role)


def check_reward_model(path: str) -> None:
    """ModelError unless `path` may hold a reward model: one label, and a pad token that does not end a sequence."""
    check_model_dir(path, role="reward model")
    config = read_config(path, role="reward model")
    if config.num_labels != 1:
        raise ModelError(f"The reward model {path} gives {config.num_labels} labels; a reward model gives 1 score.")
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if config.pad_token_id is None or config.pad_token_id in ends:
        raise ModelError(
            f"The reward model {path} has pad_token_id {config.pad_token_id} and eos_token_id {config.eos_token_id}: "
            f"tools would read its score at different tokens; give it a pad token of its own."
        )


def make_policy(init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """A causal language model with random weights; `init` is a transformers configuration with its model_type."""
    settings = dict(init)
    model_type = settings.pop("model_type")
    try:
        config = AutoConfig.for_model(
            model_type,
            **settings,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                _without_dropout(config), dtype=torch.float32, attn_implementation=implementation(config)
            )
    except UNLOADABLE as error:
        raise ModelError(f"No model can be made from model.init={init}: {reason_of(error)}.") from error
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def load_policy(path: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model."""
    role = "policy"
    check_model_dir(path, role=role)
    config = read_config(path, role=role)
    model, missing = _load(causal_class(config), path, config, role=role, dtype=dtype)
    if missing:
        raise ModelError(f"The policy {path} lacks the weights {_some(missing)}.")
    model.generation_config = generation_config(path, config)[0]
    return model


def make_reward_model(
    base_path: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, heads: int = 1
) -> PreTrainedModel:
    """A reward model on a pretrained backbone, its heads drawn with deviation 1/sqrt(H + 1).

    Stiennon et al. 2020 as released; one score a sequence and head.
    """
    role = "reward model backbone"
    check_model_dir(base_path, role=role)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError(
            f"The tokenizer of {base_path} pads with {tokenizer.pad_token!r} and ends with {tokenizer.eos_token!r}: a "
            f"reward model needs a pad token of its own, or tools would read its score at different tokens."
        )
    config = read_config(base_path, role=role, num_labels=heads)
    model, missing = _load(scalar_class(config, "sequence"), base_path, config, role=role, seed=seed)
    head = scalar_head(model)
    absent = {name for name in missing if not _belongs_to_head(name, model)}
    if absent:
        raise ModelError(f"The {role} {base_path} lacks the weights {_some(absent)}.")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        head.weight.normal_(std=(head.in_features + 1) ** -0.5)
        if head.bias is not None:
            head.bias.zero_()
    if heads == 1:
        as_reward_model(model.config)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    return model


def as_reward_model(config: PretrainedConfig) -> None:
    """Have every tool read one raw score: without the problem type, pipelines and vLLM would squash it."""
    config.problem_type = "regression"
    config.id2label = {0: "reward"}
    config.label2id = {"reward": 0}


def load_reward_model(path: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A trained reward model; ModelError if any weight of it, above all its head, would be newly initialised."""
    check_reward_model(path)
    role = "reward model"
    config = read_config(path, role=role)
    model, missing = _load(scalar_class(config, "sequence"), path, config, role=role, dtype=dtype)
    if missing:
        raise ModelError(
            f"The reward model {path} lacks the weights {_some(missing)}: it is not a trained reward model."
        )
    return model


def load_trained_heads(path: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A trained reward model with the heads it was trained with, where these are several: the plain model is their mean."""
    model = load_reward_model(path, dtype=dtype)
    several = Path(path, HEADS_FILE)
    if several.exists():
        put_heads(model, load_file(several)["heads"])
    return model


def load_critic(reward_model_path: str) -> PreTrainedModel:
    """A critic that starts as the reward model: the same backbone, its head read at every token, bias 0."""
    reward_model = load_reward_model(reward_model_path)
    return _critic(reward_model_path, scalar_head(reward_model).weight)


def make_critic(policy_path: str) -> PreTrainedModel:
    """A critic on the policy's backbone that values everything at 0 (Ziegler et al. 2019), where no reward model fits."""
    return _critic(policy_path, None)


def _critic(path: str, head_weight: torch.Tensor | None) -> PreTrainedModel:
    config = read_config(path, role="critic", num_labels=1)
    model, missing = _load(scalar_class(config, "token"), path, config, role="critic")
    absent = {name for name in missing if not _belongs_to_head(name, model)}
    if absent:
        raise ModelError(f"The critic's backbone {path} lacks the weights {_some(absent)}.")
    head = scalar_head(model)
    with torch.no_grad():
        head.weight.zero_() if head_weight is None else head.weight.copy_(head_weight)
        if head.bias is not None:
            head.bias.zero_()
    # Token classifiers drop out in front of their head unless their configuration says otherwise.
    model.config.classifier_dropout = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def generation_config(path: str, config: PretrainedConfig) -> tuple[GenerationConfig, str | None]:
    """The generation defaults beside a model, and one sentence on those that transformers reads and refuses to write.

    Nothing here samples by them; what is exported keeps them where they are valid, else the special tokens alone.
    """
    try:
        found = GenerationConfig.from_pretrained(path)
    except (OSError, ValueError):
        return GenerationConfig.from_model_config(config), None
    try:
        found.validate(strict=True)
    except ValueError as error:
        tokens = {name: getattr(found, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        dropped = (
            f"The sampling defaults in generation_config.json of {path} are left out of what is exported, since "
            f"transformers refuses to write them: {reason_of(error)}."
        )
        return GenerationConfig(**tokens), dropped
    return found, None


def end_token_ids(path: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a response: the tokenizer's own, and those of the model's generation_config.json."""
    try:
        listed = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        listed = None
    more = listed if isinstance(listed, list) else ([] if listed is None else [listed])
    return sorted({tokenizer.eos_token_id, *more})


def _load(
    model_class: type[PreTrainedModel],
    path: str,
    config: PretrainedConfig,
    *,
    role: str,
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the weights that its directory lacks."""
    check_attention(config, path=path, role=role)
    try:
        # Missing weights are drawn at random, and this must not move the generator that training draws from.
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            model, info = model_class.from_pretrained(
                path,
                config=_without_dropout(config),
                output_loading_info=True,
                dtype=dtype,
                attn_implementation=implementation(config),
            )
    except UNLOADABLE as error:
        raise ModelError(f"The {role} {path} cannot be loaded: {reason_of(error)}.") from error
    loaded: PreTrainedModel = model.eval()
    return loaded, set(info["missing_keys"])


def _belongs_to_head(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight lies between the last hidden state and the score: newly made with a new reward model."""
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


def read_config(path: str, *, role: str, **options: Any) -> PretrainedConfig:
    """A model's configuration, of several modalities the text model's; ModelError without a usable one."""
    try:
        config = decoder_config(AutoConfig.from_pretrained(path, **options))
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelError(f"The {role} {path} has no usable config.json: {reason_of(error)}.") from error
    for name, value in options.items():
        setattr(config, name, value)
    return config


def _without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    for part in (config, config.get_text_config(decoder=True)):
        for name in vars(part):
            if "drop" in name and isinstance(getattr(part, name), float):
                setattr(part, name, 0.0)
    return config


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line, of an error of the libraries below."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    return in_one_line(error)
