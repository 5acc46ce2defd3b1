"""The prompts of the PPO stage, as the driver holds them."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import RunConfig
from rayrlhf.data.bad_rows import tell
from rayrlhf.data.dataset import task_best_gold
from rayrlhf.data.encoded import encoded_prompts
from rayrlhf.data.exchange import end_of_turn
from rayrlhf.data.prompts import PromptStream
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import DataError
from rayrlhf.models.load import end_token_ids
from rayrlhf.types import Group, GroupId, Prompt, RolloutRequest, SampleId


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Tokenized prompts to train on and to evaluate on, and how responses to them end."""

    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    eos_token_ids: list[int]
    gold_best: float | None
    """Mean of the best attainable gold reward over the prompts of an evaluation."""


class GroupStream:
    """The groups of the run: one a prompt of the stream, with `samples_per_prompt` samples."""

    def __init__(self, prompts: Sequence[Prompt], config: RunConfig) -> None:
        self._stream = PromptStream(prompts, prompts_per_step=config.ppo.prompts_per_step, seed=config.seed)
        self._samples = config.ppo.samples_per_prompt
        self._seed = config.seed

    def group(self, group_id: GroupId) -> Group:
        """A group, as it is drawn from its prompt on; the same whenever it is asked for."""
        prompts = self._stream.at(group_id.step)
        prompt = prompts[group_id.position]
        # Where an epoch ends within a step, a prompt may come twice in it: its samples are numbered on.
        earlier = sum(other.prompt_id == prompt.prompt_id for other in prompts[: group_id.position])
        names = (
            SampleId(group_id.stage, group_id.step, prompt.prompt_id, earlier * self._samples + k)
            for k in range(self._samples)
        )
        requests = tuple(sample_request(self._seed, sample_id, prompt) for sample_id in names)
        return Group(group_id=group_id, requests=requests)


def sample_request(seed: int, sample_id: SampleId, prompt: Prompt) -> RolloutRequest:
    """What a worker needs to draw a sample; the run's seed and the sample's name decide the draw."""
    return RolloutRequest(sample_id=sample_id, prompt_ids=prompt.token_ids, seed=derive_seed(seed, *sample_id))


def fixed_groups(seed: int, purpose: str, prompts: Sequence[Prompt], *, size: int) -> list[Group]:
    """One sample a prompt, `size` of them a group, with the same seeds whenever it is asked for that purpose."""
    requests = [sample_request(seed, SampleId(purpose, 0, prompt.prompt_id, 0), prompt) for prompt in prompts]
    return [
        Group(group_id=GroupId(purpose, 0, number), requests=tuple(requests[start : start + size]))
        for number, start in enumerate(range(0, len(requests), size))
    ]


def load_prompt_set(config: RunConfig, *, policy_dir: str) -> PromptSet:
    """Load and tokenize the prompts with the policy's tokenizer."""
    tokenizer = load_tokenizer(policy_dir)
    encoded = encoded_prompts(config, policy_dir)
    tell(encoded.told)
    train, heldout = encoded.train, encoded.heldout
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
        eos_token_ids=sorted(
            {*end_token_ids(policy_dir, tokenizer), *_turn_ends(encoded.source.chats, tokenizer, config)}
        ),
        gold_best=task_best_gold(config, [prompt.text for prompt in judged]),
    )


def _turn_ends(conversations: bool, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> list[int]:
    """What ends a response to a conversation in the chat template, where the prompts are conversations."""
    end = end_of_turn(tokenizer) if conversations or config.data.plain_prompts == "chat" else None
    return [] if end is None else [end]
