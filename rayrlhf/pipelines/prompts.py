"""The prompts of the PPO stage, as the driver holds them."""

from dataclasses import dataclass

from rayrlhf.config import RunConfig
from rayrlhf.data.dataset import load_prompts, task_best_gold, tokenize_prompts
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import DataError
from rayrlhf.models.load import end_token_ids
from rayrlhf.types import Prompt


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Tokenized prompts to train on and to evaluate on, and how responses to them end."""

    train: list[Prompt]
    heldout: list[Prompt]
    eos_token_ids: list[int]
    gold_best: float | None
    """Mean of the best attainable gold reward over the prompts of an evaluation."""


def load_prompt_set(config: RunConfig, *, policy_dir: str) -> PromptSet:
    """Load and tokenize the prompts with the policy's tokenizer."""
    tokenizer = load_tokenizer(policy_dir)
    split = load_prompts(config)
    train = tokenize_prompts(split.train, tokenizer, config)
    heldout = tokenize_prompts(split.heldout, tokenizer, config)
    if len(train) < config.ppo.prompts_per_step:
        raise DataError(
            f"The prompts hold {len(train)} usable rows and ppo.prompts_per_step={config.ppo.prompts_per_step} asks for more."
        )
    if not heldout:
        raise DataError("No prompts are left for evaluation: raise data.heldout_fraction or give more prompts.")
    judged = heldout[: config.ppo.evaluate_prompts]
    return PromptSet(
        train=train,
        heldout=heldout,
        eos_token_ids=end_token_ids(policy_dir, tokenizer),
        gold_best=task_best_gold(config, [prompt.text for prompt in judged]),
    )
