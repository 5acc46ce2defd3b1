"""The four models, from a directory, a hub name or a configuration; always fp32 masters with dropout off."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rayrlhf.errors import ModelError
from rayrlhf.models.heads import scalar_head

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
    _config(path, role=role)


def check_context(path: str, *, max_length: int) -> None:
    """ModelError when a model's positions end before `max_length` tokens."""
    context = getattr(_config(path, role="policy").get_text_config(), "max_position_embeddings", None)
    if context is not None and max_length > context:
        raise ModelError(
            f"model.max_length={max_length} exceeds the {context} positions of the policy {path}: lower it to {context}."
        )


def check_reward_model(path: str) -> None:
    """ModelError unless `path` may hold a reward model: one label, and a pad token that does not end a sequence."""
    check_model_dir(path, role="reward model")
    config = _config(path, role="reward model")
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
            model = AutoModelForCausalLM.from_config(_without_dropout(config), dtype=torch.float32)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ModelError(f"No model can be made from model.init={init}: {first_line(error)}.") from error
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def load_policy(path: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model."""
    check_model_dir(path, role="policy")
    model, missing = _load(AutoModelForCausalLM, path, role="policy", dtype=dtype)
    if missing:
        raise ModelError(f"The policy {path} lacks the weights {_some(missing)}.")
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
    model, missing = _load(AutoModelForSequenceClassification, base_path, role=role, num_labels=heads, seed=seed)
    head = scalar_head(model)
    absent = {name for name in missing if not _belongs_to_head(name)}
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
    model, missing = _load(AutoModelForSequenceClassification, path, role="reward model", dtype=dtype)
    if missing:
        raise ModelError(
            f"The reward model {path} lacks the weights {_some(missing)}: it is not a trained reward model."
        )
    return model


def load_critic(reward_model_path: str) -> PreTrainedModel:
    """A critic that starts as the reward model: the same backbone, its head read at every token, bias 0."""
    reward_model = load_reward_model(reward_model_path)
    return _critic(reward_model_path, scalar_head(reward_model).weight)


def make_critic(policy_path: str) -> PreTrainedModel:
    """A critic on the policy's backbone that values everything at 0 (Ziegler et al. 2019), where no reward model fits."""
    return _critic(policy_path, None)


def _critic(path: str, head_weight: torch.Tensor | None) -> PreTrainedModel:
    model, _ = _load(AutoModelForTokenClassification, path, role="critic", num_labels=1)
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


def end_token_ids(path: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a response: the tokenizer's own, and those of the model's generation_config.json."""
    try:
        listed = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        listed = None
    more = listed if isinstance(listed, list) else ([] if listed is None else [listed])
    return sorted({tokenizer.eos_token_id, *more})


def _load(auto: Any, path: str, *, role: str, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    options.setdefault("dtype", torch.float32)
    seed: int | None = options.pop("seed", None)
    config = _without_dropout(_config(path, role=role, **_labels(options)))
    try:
        # Missing weights are drawn at random, and this must not move the generator that training draws from.
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            model, info = auto.from_pretrained(path, config=config, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"The {role} {path} cannot be loaded: {first_line(error)}.") from error
    return model.eval(), set(info["missing_keys"])


def _belongs_to_head(name: str) -> bool:
    """Whether a weight lies between the last hidden state and the score: newly made with a new reward model."""
    return name.split(".")[0] in ("score", "classifier") or ".pooler." in name


def _labels(options: dict[str, Any]) -> dict[str, Any]:
    return {"num_labels": options.pop("num_labels")} if "num_labels" in options else {}


def _config(path: str, *, role: str, **options: Any) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelError(f"The {role} {path} has no usable config.json: {first_line(error)}.") from error
    return config


def _without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    for name in vars(config):
        if "drop" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    return config


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def first_line(error: BaseException) -> str:
    """What went wrong, in one line, of an error of the libraries below."""
    lines = str(error.__cause__ if isinstance(error, StrictDataclassError) else error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
