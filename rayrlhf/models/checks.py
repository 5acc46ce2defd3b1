"""What can be known of a model before anything starts: its limits, its tokens, and whether it can be trained and written."""

import copy
import tempfile
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from rayrlhf.errors import ModelError
from rayrlhf.models.attention import check_attention, implementation
from rayrlhf.models.classes import Kind, causal_class, is_encoder, scalar_class, unread_by_stock_tools
from rayrlhf.models.heads import scalar_head
from rayrlhf.models.load import (
    UNLOADABLE,
    check_model_dir,
    check_reward_model,
    generation_config,
    read_config,
    reason_of,
)
from rayrlhf.models.members import model_directories

_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
_UNSCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Rotary scalings that `max_position_embeddings` holds already; the others multiply it."""
_POSITIONS_AFTER_PAD = frozenset(
    {
        "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "longformer",
        "data2vec-text", "mpnet", "ibert", "luke", "xmod", "lilt",
    }
)  # fmt: skip
"""Encoders that count positions from the id after their pad token, so that the first ones are never used."""


def check_policy(path: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int, with_critic: bool) -> list[str]:
    """ModelError where this policy cannot be trained, sampled from or written; else what a user should be told.

    With a critic on its backbone, that one too.
    """
    role = "policy"
    check_model_dir(path, role=role)
    config = read_config(path, role=role)
    origin = f"the {role} {path}"
    kind = _causal(config, origin)
    _check_config(config, path=path, role=role)
    _check_length(config, origin, key="model.max_length", wanted=max_length)
    _check_tokens(config, tokenizer, origin)
    written, dropped = generation_config(path, config)
    _check_end_tokens(config, written, path)
    model = _untouched(kind, config, origin)
    _check_embeddings(model, path, origin)
    model.generation_config = written
    _dry_export(model, origin, tokenizer)
    notes = [] if dropped is None else [dropped]
    return notes + (_check_scalar(config, origin, "token") if with_critic else [])


def check_init(config: PretrainedConfig, *, stages: list[str], with_critic: bool) -> list[str]:
    """`check_policy` for a model that is made in the run, and for the reward model and critic made of it."""
    origin = "the model of model.init"
    kind = _causal(config, origin)
    _check_config(config, path="of model.init", role="policy")
    _dry_export(_untouched(kind, config, origin), origin)
    notes = _check_scalar(config, origin, "sequence") if "reward" in stages else []
    return notes + (_check_scalar(config, origin, "token") if with_critic else [])


def check_backbone(path: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> list[str]:
    """ModelError where no reward model can be trained on this backbone, or be written; else what a user should be told."""
    role = "reward model backbone"
    check_model_dir(path, role=role)
    config = read_config(path, role=role, num_labels=1)
    origin = f"the {role} {path}"
    _check_config(config, path=path, role=role)
    _check_length(config, origin, key="the reward model's max_length", wanted=max_length)
    _check_tokens(config, tokenizer, origin)
    config.pad_token_id = tokenizer.pad_token_id
    return _check_scalar(config, origin, "sequence", tokenizer)


def check_scorer(path: str, *, max_length: int) -> None:
    """ModelError unless `path`, and each member below it, may be a reward model that scores prompt and response of
    `max_length` tokens."""
    role = "reward model"
    for own in model_directories(path):
        check_reward_model(own)
        config = read_config(own, role=role)
        origin = f"the {role} {own}"
        _check_config(config, path=own, role=role)
        _check_pad(config, origin)
        if learnt_positions(_untouched(scalar_class(config, "sequence"), config, origin)) is not None:
            _check_length(config, origin, key="model.max_length", wanted=max_length)


def check_judge(path: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
    """ModelError unless `path` may hold a causal language model that reads questions and answers of `max_length` tokens."""
    role = "judge"
    config = read_config(path, role=role)
    origin = f"the {role} {path}"
    _causal(config, origin, role=role)
    _check_config(config, path=path, role=role)
    _check_length(config, origin, key="its max_length", wanted=max_length)
    _check_tokens(config, tokenizer, origin)


def positions(config: PretrainedConfig) -> int | None:
    """How many tokens a model reads; None where nothing limits it."""
    text = config.get_text_config(decoder=True)
    found = [value for name in _LENGTHS if isinstance(value := getattr(text, name, None), int) and value > 0]
    if not found:
        return None
    length = min(found)
    if text.model_type in _POSITIONS_AFTER_PAD:
        return length - 1 - (text.pad_token_id or 0)
    rope = getattr(text, "rope_parameters", None) or {}
    if "gemma3" not in text.model_type and rope.get("rope_type", "default") not in (*_UNSCALED, "default"):
        length = int(length * (rope.get("factor") or 1.0))
    return length


def learnt_positions(model: PreTrainedModel) -> int | None:
    """Tokens for which the model has learnt positions, past which it cannot read at all; None where it learnt none."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not model.get_input_embeddings()]
    learnt = length is not None and any(0 <= table.num_embeddings - length <= 2 for table in tables)
    return positions(model.config) if learnt else None


def _check_config(config: PretrainedConfig, *, path: str, role: str) -> None:
    check_attention(config, path=path, role=role)
    text = config.get_text_config(decoder=True)
    heads, groups = (getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups:
        raise ModelError(
            f"The {role} {path} has {heads} attention heads for {groups} key and value heads: the first must be a "
            f"multiple of the second (num_attention_heads, num_key_value_heads)."
        )


def _check_length(config: PretrainedConfig, origin: str, *, key: str, wanted: int) -> None:
    offered = positions(config)
    if offered is not None and wanted > offered:
        raise ModelError(f"{key}={wanted} exceeds the {offered} positions of {origin}: lower it to {offered}.")


def _check_tokens(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, origin: str) -> None:
    """Every id the tokenizer can give has an embedding; embeddings beyond them are padding, which both sides keep."""
    rows = config.get_text_config(decoder=True).vocab_size
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        what = "its pad token" if tokenizer.pad_token_id == largest else f"{tokenizer.convert_ids_to_tokens(largest)!r}"
        raise ModelError(
            f"The tokenizer of {origin} gives ids up to {largest} ({what}) and there are {rows} embeddings: resize them "
            f"(model.resize_token_embeddings(len(tokenizer))) and save model and tokenizer together."
        )
    _check_pad(config, origin)
    if largest + 1 < rows:
        try:
            tokenizer.decode([rows - 1])
        except Exception as error:  # whatever a tokenizer of other people's code raises
            raise ModelError(
                f"{_named(origin)} has {rows} embeddings and its tokenizer knows {largest + 1} ids and "
                f"cannot decode the others ({reason_of(error)}): cut the embeddings to the tokenizer."
            ) from error


def _check_pad(config: PretrainedConfig, origin: str) -> None:
    text = config.get_text_config(decoder=True)
    pad = getattr(text, "pad_token_id", None)
    if pad is not None and pad >= text.vocab_size:
        raise ModelError(
            f"The config.json of {origin} has pad_token_id {pad} and there are {text.vocab_size} embeddings: set it to "
            f"a token of the vocabulary."
        )


def _check_end_tokens(config: PretrainedConfig, written: GenerationConfig, path: str) -> None:
    rows = config.get_text_config(decoder=True).vocab_size
    listed = written.eos_token_id
    for end in listed if isinstance(listed, list) else [listed]:
        if end is not None and not 0 <= end < rows:
            raise ModelError(
                f"The generation_config.json of the policy {path} ends responses at token {end}, and there are {rows} "
                f"embeddings: no response could end there."
            )


def _check_embeddings(model: PreTrainedModel, path: str, origin: str) -> None:
    """The rows that config.json promises are in the file, read from its header alone."""
    embeddings = model.get_input_embeddings().weight
    name = next((name for name, value in model.named_parameters() if value is embeddings), None)
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                found = tuple(tensors.get_slice(name).get_shape()) if name in tensors.keys() else None  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{_named(origin)} cannot be loaded: {reason_of(error)}.") from error
        if found is not None and found != tuple(embeddings.shape):
            raise ModelError(
                f"{_named(origin)} has embeddings {list(found)} and its config.json says "
                f"{list(embeddings.shape)} (vocab_size, hidden_size): save both together."
            )


def _check_scalar(
    config: PretrainedConfig, origin: str, kind: Kind, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[str]:
    config = copy.deepcopy(config)
    config.num_labels = 1
    model = _untouched(scalar_class(config, kind), config, origin)
    scalar_head(model)
    _dry_export(model, origin, tokenizer)
    told = unread_by_stock_tools(config, kind)
    return [] if told is None else [told]


def _causal(config: PretrainedConfig, origin: str, *, role: str = "policy") -> type[PreTrainedModel]:
    try:
        found = causal_class(config)
    except ModelError as error:
        raise ModelError(f"{_named(origin)} cannot be a {role}: {error}") from error
    if is_encoder(config):
        raise ModelError(f"{_named(origin)} is an encoder ({config.model_type}): a {role} is a decoder.")
    return found


def _named(origin: str) -> str:
    """At the beginning of a sentence."""
    return origin[0].upper() + origin[1:]


def _untouched(kind: type[PreTrainedModel], config: PretrainedConfig, origin: str) -> PreTrainedModel:
    """The model as it would be loaded, without weights."""
    try:
        with torch.device("meta"):
            made: PreTrainedModel = kind._from_config(
                copy.deepcopy(config), attn_implementation=implementation(config), dtype=torch.float32
            )
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        AssertionError,
        RuntimeError,
        StrictDataclassError,
    ) as error:
        raise ModelError(f"{_named(origin)} cannot be made: {reason_of(error)}.") from error
    return made


def _dry_export(model: PreTrainedModel, origin: str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write all but the weights, as the export after training will."""
    quiet = not logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory, state_dict={})
            if tokenizer is not None:
                tokenizer.save_pretrained(directory)
    except UNLOADABLE as error:
        raise ModelError(f"{_named(origin)} could not be written after training: {reason_of(error)}.") from error
    finally:
        if not quiet:
            logging.enable_progress_bar()
