"""The models of a run, held against their roles before anything starts."""

from transformers import AutoConfig, PretrainedConfig

from rayrlhf.config import JudgeReward, RunConfig
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import ModelError
from rayrlhf.models.checks import check_backbone, check_init, check_judge, check_policy, check_scorer
from rayrlhf.models.classes import decoder_config
from rayrlhf.models.device import resolve_dtype_name
from rayrlhf.models.load import check_model_dir, check_reward_model, read_config, reason_of
from rayrlhf.reward.model import members_and_heads
from rayrlhf.reward.questions import OPTIONS
from rayrlhf.reward.verify import template_fault
from rayrlhf.rollout.chat import answer_tokens
from rayrlhf.rollout.limits import check_engine


def check_models(config: RunConfig) -> list[str]:
    """ModelError for a model that some stage could not use, or not write at its end; else what a user should be told."""
    with_critic = "ppo" in config.stages and config.ppo.uses_critic
    notes: list[str] = []
    if config.model.path is not None:
        path = config.model.path
        check_model_dir(path, role="policy")
        if config.stages != ["reward"]:
            tokenizer = load_tokenizer(path)
            notes += check_policy(path, tokenizer, max_length=config.model.max_length, with_critic=with_critic)
    else:
        notes += check_init(policy_config(config), stages=list(config.stages), with_critic=with_critic)
    for base in dict.fromkeys(reward_bases(config)) if "reward" in config.stages else ():
        check_model_dir(base, role="reward model backbone")
        if config.reward.keep_head:
            _check_trained(config, base)
        tokenizer = load_tokenizer(base)
        notes += check_backbone(base, tokenizer, max_length=config.reward_max_length)
        fault = template_fault(tokenizer, config.data.reading)
        if fault is not None:
            notes.append(f"The reward model on {base} will not pass verify: {fault}.")
    for path in _scorers(config):
        check_scorer(path, max_length=config.model.max_length)
    for judge, path in _judges(config):
        check_model_dir(path, role="judge")
        tokenizer = load_tokenizer(path)
        check_judge(path, tokenizer, max_length=judge.max_length)
        if judge.verdict == "logprobs":
            for option in OPTIONS:
                answer_tokens(tokenizer, option)
    return list(dict.fromkeys(notes))


def reward_bases(config: RunConfig) -> list[str]:
    """The backbone of each reward model that the run trains; empty where the run makes it."""
    return config.reward.bases or ([] if config.model.path is None else [config.model.path] * config.reward.members)


def check_engine_limits(config: RunConfig, *, device: str) -> None:
    """ModelError where vLLM could not sample from the policy on `device`."""
    if "ppo" in config.stages:
        origin = f"the policy {config.model.path}" if config.model.path is not None else "the model of model.init"
        device = device if config.device == "auto" else config.device
        dtype = resolve_dtype_name(config.rollout.dtype, device)
        check_engine(policy_config(config), origin=origin, device=device, dtype=dtype)
        for _, path in _judges(config):
            dtype = resolve_dtype_name(config.scoring.dtype, device)
            judge = read_config(path, role="judge")
            check_engine(judge, origin=f"the judge {path}", device=device, dtype=dtype, trained=False)


def policy_config(config: RunConfig) -> PretrainedConfig:
    """The configuration of the policy, also of one that is made in the run."""
    if config.model.path is not None:
        return read_config(config.model.path, role="policy")
    init = dict(config.model.init or {})
    try:
        made = AutoConfig.for_model(
            init.pop("model_type"), **init, vocab_size=config.model.vocab_size, pad_token_id=0, eos_token_id=1
        )
    except Exception as error:  # a configuration class may raise anything for values of other people
        raise ModelError(f"No model can be made from model.init={config.model.init}: {reason_of(error)}.") from error
    return decoder_config(made)


def _check_trained(config: RunConfig, base: str) -> None:
    """ModelError unless `base` is a reward model of as many members and heads as are to be trained on."""
    check_reward_model(base)
    found, asked = members_and_heads(base), (config.reward.members, config.reward.heads)
    if found != asked:
        raise ModelError(
            f"The reward model {base} has {found[0]} members of {found[1]} heads, and reward.keep_head=true asks to go on "
            f"from {asked[0]} of {asked[1]} (reward.members, reward.heads)."
        )


def _judges(config: RunConfig) -> list[tuple[JudgeReward, str]]:
    """The judges that run in the scoring workers, with their paths."""
    judges = config.ppo.judges if "ppo" in config.stages else []
    return [(judge, judge.path) for judge in judges if judge.path is not None]


def _scorers(config: RunConfig) -> list[str]:
    if "ppo" not in config.stages:
        return []
    paths = [model.path for model in config.ppo.reward_models if model.path is not None]
    return paths + ([config.ppo.guard.judge] if config.ppo.guard.judge is not None else [])
