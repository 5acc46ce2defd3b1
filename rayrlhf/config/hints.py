"""What a key that is not ours was meant to be: names of other libraries, and names that are near one of the tree"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from rayrlhf.config.root import RunConfig

# Names that people bring from TRL, OpenRLHF, verl and others, by what they are here. "{stage}" is the stage whose section
# the name stands in, else ppo. A name that is a key elsewhere in the tree needs no line: it is found there.
_ALIASES = {
    "ppo.advantage": "algorithm algo adv_estimator advantage_estimator estimator_type advantage_type",
    "{stage}.optim.lr": "lr learning_rate actor_lr actor_learning_rate policy_lr step_size",
    "ppo.critic_optim.lr": "critic_lr critic_learning_rate value_lr vf_coef vf_coeff value_loss_coef",
    "{stage}.optim.warmup_steps": "num_warmup_steps warmup_ratio lr_warmup_steps lr_warmup_ratio warmup",
    "{stage}.optim.schedule": "lr_scheduler lr_scheduler_type scheduler lr_schedule",
    "{stage}.optim.max_grad_norm": "max_norm grad_clip clip_grad gradient_clipping",
    "ppo.kl.coef": "kl_coef init_kl_coef kl_coeff kl_loss_coef kl_penalty_coef beta kl_beta init_coef coefficient",
    "ppo.kl.target": "kl_target",
    "ppo.kl.placement": "use_kl_loss use_kl_in_reward kl_in_reward kl_in_loss",
    "ppo.kl.estimator": "kl_estimator kl_loss_type kl_type kl_penalty",
    "ppo.samples_per_prompt": (
        "num_generations n_samples_per_prompt num_samples_per_prompt n_samples rollout_n group_size n num_return_sequences "
        "samples_per_group"
    ),
    "{stage}.prompts_per_step": "batch_size train_batch_size rollout_batch_size gen_batch_size global_batch_size",
    "{stage}.micro_batch_tokens": (
        "micro_batch_size micro_train_batch_size micro_rollout_batch_size per_device_train_batch_size ppo_micro_batch_size "
        "ppo_micro_batch_size_per_gpu ppo_max_token_len_per_gpu max_tokens_per_batch"
    ),
    "ppo.minibatches": "num_mini_batches num_minibatches mini_batch_size ppo_mini_batch_size minibatch_size",
    "{stage}.epochs": "num_ppo_epochs ppo_epochs max_epochs num_train_epochs num_epochs num_iterations update_epochs",
    "ppo.clip_low and ppo.clip_high": "cliprange clip_range clip_ratio eps_clip clip_eps epsilon clip_epsilon clip",
    "ppo.clip_low": "clip_ratio_low epsilon_low eps_clip_low cliprange_low",
    "ppo.clip_high": "clip_ratio_high epsilon_high eps_clip_high cliprange_high",
    "ppo.value_clip": "cliprange_value clip_range_vf value_clip_range vf_clip",
    "ppo.lam": "lambda lambd gae_lambda lambda_",
    "ppo.gamma": "discount discount_factor",
    "ppo.entropy_coef": "entropy_coeff ent_coef entropy_loss_coef entropy_bonus",
    "ppo.updates": (
        "total_steps num_updates total_training_steps num_rollouts num_steps num_train_steps total_episodes max_steps"
    ),
    "ppo.whiten_advantages": "normalize_advantages advantage_norm normalize_advantage whiten_rewards advantage_whitening",
    "ppo.scale": "scale_rewards norm_adv_by_std_in_grpo scale_by_std normalize_by_std",
    "ppo.loss_aggregation": "loss_agg_mode loss_type loss_reduction token_level_loss",
    "ppo.normalize_reward": "normalize_rewards reward_normalization reward_norm use_reward_norm",
    "ppo.reward_clip": "reward_clip_range cliprange_reward clip_reward clip_rewards",
    "ppo.truncation": "mask_truncated_completions overlong_filter overlong_filtering",
    "ppo.importance_cap": "tis_imp_ratio_cap vllm_importance_sampling_cap importance_sampling_cap tis_cap",
    "ppo.max_staleness": "staleness_threshold async_level max_off_policy_steps off_policy_steps",
    "ppo.critic_warmup_updates": "critic_warmup value_warmup freezing_critic_steps freezing_actor_steps",
    "ppo.rewards": (
        "reward reward_model reward_models reward_model_path reward_pretrain reward_func reward_funcs reward_function "
        "reward_functions reward_fn custom_reward_function remote_rm_url verifier"
    ),
    "{stage}.evaluate_every": "eval_steps eval_interval eval_freq test_freq eval_every",
    "sampling.max_new_tokens": (
        "max_tokens response_length max_response_length generate_max_len max_completion_length max_completion_tokens"
    ),
    "data.max_prompt_tokens": "max_prompt_length prompt_max_len max_prompt_len",
    "data.prompts": "prompt_data train_files prompt_dataset train_dataset",
    "model.max_length": "max_len max_model_len max_seq_length max_seq_len sequence_length",
    "model.path": "model_name_or_path pretrain pretrained model_name base_model actor_model",
    "checkpoint.every": "save_steps save_freq save_interval save_every",
    "checkpoint.keep": "save_total_limit max_ckpt_num",
    "rollout.workers": "vllm_num_engines num_engines num_rollout_workers",
    "rollout.gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "learner.dtype": "bf16 fp16 mixed_precision torch_dtype param_dtype precision",
    "wandb.mode": "report_to use_wandb",
    "wandb.project": "project_name wandb_project",
    "name": "run_name experiment_name exp_name",
    "output_dir": "save_path ckpt_path default_local_dir",
}

_OURS = {name: ours for ours, names in _ALIASES.items() for name in names.split()}

_ESTIMATORS = {
    "ppo": "ppo.advantage=gae",
    "gae": "ppo.advantage=gae",
    "grpo": "ppo.advantage=grpo",
    "group_norm": "ppo.advantage=grpo",
    "dr_grpo": "ppo.advantage=grpo and ppo.scale=none",
    "drgrpo": "ppo.advantage=grpo and ppo.scale=none",
    "rloo": "ppo.advantage=rloo",
    "reinforce": "ppo.advantage=reinforce",
    "reinforce++": "ppo.advantage=reinforce",
    "reinforce_plus_plus": "ppo.advantage=reinforce",
}
"""What the names of algorithms are here."""

_STAGES = ("sft", "reward", "ppo")
_SPELLING, _BESIDE, _ANYWHERE = 0.85, 0.6, 0.8
"""How near (difflib's ratio) a name must be: to be the same name misspelt; to one beside it; to one in another section."""


def unknown_key(path: list[str], value: Any, beside: Iterable[str]) -> str:
    """The sentence about the unknown key `path` that was given `value`, where the keys `beside` are valid.

    Of an unknown section the keys in it are told, unless its own name is one beside it misspelt.
    """
    known = sorted(beside)
    if isinstance(value, Mapping) and value and not _near(path[-1], known):
        return "; ".join(unknown_key([*path, str(name)], below, ()) for name, below in value.items())
    meant = _meant(path, value, known)
    hint = (
        f"valid keys are {', '.join(known or sorted(RunConfig.model_fields))}"
        if meant is None
        else f"did you mean {meant}?"
    )
    return f"unknown key {'.'.join(path)} ({hint})"


def estimator(value: Any) -> str | None:
    """The setting that an algorithm's name stands for; None where it is the name of none."""
    return _ESTIMATORS.get(value.lower().replace("-", "_")) if isinstance(value, str) else None


def reward_term(key: str, term: Any) -> str:
    """The sentence about a reward term that does not say what it is."""
    kinds = (
        "model (a reward model), metric (comparison with the reference), function (your own Python function, such as a "
        "verifier) or http (a server)"
    )
    if not isinstance(term, Mapping):
        return f"{key}={term!r} must be a mapping with a kind: {kinds}"
    by_field = {"target": "function", "path": "model", "urls": "http", "ensemble": "model", "name": "metric"}
    guess = next((f"; with {field} it is kind: {kind}" for field, kind in by_field.items() if field in term), "")
    return f"{key} needs a kind: {kinds}{guess}"


def _meant(path: list[str], value: Any, known: list[str]) -> str | None:
    name = path[-1].lower().replace("-", "_")
    beside = _near(name, known)
    stage = path[0] if path[0] in _STAGES else "ppo"
    if not beside:
        for alias in _near(name, _OURS):
            ours, target = _OURS[alias], _OURS[alias].format(stage=stage)
            if target != ".".join(path):
                return (estimator(value) or target) if ours == "ppo.advantage" else target
        if estimator(name) is not None:
            return estimator(name)
    everywhere = list(_tree())
    same = [other for other in everywhere if other.split(".")[-1] == name]
    if same:
        return _nearest_first(same, path)
    beside = beside or _near(name, known, cutoff=_BESIDE)
    if beside:
        return ".".join([*path[:-1], beside[0]])
    near = _near(name, sorted({other.split(".")[-1] for other in everywhere}), cutoff=_ANYWHERE)
    return _nearest_first([other for other in everywhere if other.split(".")[-1] == near[0]], path) if near else None


def _near(name: str, known: Iterable[str], *, cutoff: float = _SPELLING) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)


def section(key: str, value: Any) -> str:
    """The sentence about a section that was given a value."""
    inside = [other.removeprefix(f"{key}.") for other in _tree() if other.startswith(f"{key}.")]
    named = f": {', '.join(sorted(name for name in inside if '.' not in name))}" if inside else ""
    return f"{key}={value!r} must be a section with keys of its own{named}"


def _nearest_first(candidates: list[str], path: list[str]) -> str:
    """The candidates that share most of the path, at most three of them."""

    def shared(candidate: str) -> int:
        pairs = zip(candidate.split("."), path, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(path))

    most = max(shared(candidate) for candidate in candidates)
    best = sorted((c for c in candidates if shared(c) == most), key=lambda c: c.count("."))[:3]
    return " or ".join(best)


def _tree(model: type[BaseModel] = RunConfig, above: str = "") -> Iterator[str]:
    """The full path of every key and section; not those inside lists, which have no path of their own."""
    for name, field in model.model_fields.items():
        yield above + name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _tree(part, f"{above}{name}.")
