"""Configurations of runs on files that a test wrote."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rayrlhf.config import RunConfig, load_config
from rayrlhf.data.bad_rows import tell
from rayrlhf.data.encoded import settled
from rayrlhf.data.encoding import (
    Encoder,
    demonstration_encoder,
    encode_rows,
    preference_encoder,
    prompt_encoder,
)

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


def config(root: Path, *overrides: str, **sources: dict[str, Any]) -> RunConfig:
    given = [f"data.{name}={json.dumps(source)}" for name, source in sources.items()]
    stages = {"demonstrations": "sft", "preferences": "reward", "prompts": "ppo"}
    ordered = [stages[name] for name in stages if name in sources]
    return load_config(
        QUICKSTART,
        [
            "data.task=null",
            f"data.root={root}",
            f"data.cache={root}/cache",
            f"stages={json.dumps(ordered)}",
            *given,
            *overrides,
        ],
    )


def tokenized(
    encoder: Callable[[PreTrainedTokenizerBase, RunConfig], Encoder[Any, Any]],
    rows: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
) -> list[Any]:
    """The records of rows that are a whole source; what was met in them is told as a start tells it."""
    records, account = encode_rows(rows, encoder(tokenizer, config), tokenizer)
    tell(settled([("train", account)], config))
    return records


tokenize_demonstrations = functools.partial(tokenized, demonstration_encoder)
tokenize_preferences = functools.partial(tokenized, preference_encoder)
tokenize_prompts = functools.partial(tokenized, prompt_encoder)
