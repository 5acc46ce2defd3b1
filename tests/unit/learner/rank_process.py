"""One rank of a learner in a process of its own: `python rank_process.py CASE RANK WORLD ADDRESS DIRECTORY`.

Rank 0 writes what came of it to DIRECTORY/CASE-WORLD.pt. An ADDRESS of "choose" makes rank 0 reserve one and write it
to DIRECTORY/address, as the learner actors do.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from learner_lab import hand_made, parameters, ppo_learner, run_config, supervised_learner

from rayrlhf.learner.process_group import Ranks, free_address, init_process_group
from rayrlhf.models.sharding import full_model_state
from rayrlhf.types import WeightManifest
from rayrlhf.weights.codec import unpack

STEADY = {"lr": 1.0e-3, "eps": 1.0e-4, "schedule": "constant"}


def supervised(stage: str, ranks: Ranks, directory: Path) -> dict[str, Any]:
    """Five steps, one of them a partial batch of fewer micro-batches than ranks; then the same from a checkpoint."""
    options = {"prompts_per_step": 8, "micro_batch_tokens": 64, "epochs": 2, "optim": STEADY}
    config = run_config(**{stage: options})
    learner = supervised_learner(stage, config, rows=17, ranks=ranks)
    metrics = [learner.train_step() for _ in range(3)]
    learner.save(str(directory / f"{stage}-{ranks.world}"))
    metrics += [learner.train_step() for _ in range(2)]
    evaluation = learner.evaluate()
    resumed = supervised_learner(stage, config, rows=17, ranks=ranks)
    resumed.load(str(directory / f"{stage}-{ranks.world}"))
    again = [resumed.train_step() for _ in range(2)]
    learner.export(str(directory / f"{stage}-{ranks.world}-export"))
    return {
        "parameters": parameters(learner._core.model),
        "metrics": [*metrics, evaluation],
        "resumed": parameters(resumed._core.model),
        "resumed_metrics": [*metrics[:3], *again],
        "tokens": learner.tokens,
        "exported": full_model_state(learner._core.model),
    }


def ppo(ranks: Ranks, directory: Path) -> dict[str, Any]:
    """Five updates with everything switched on; then the same from a checkpoint."""
    options: dict[str, Any] = {
        "optim": STEADY,
        "critic_optim": STEADY,
        "micro_batch_tokens": 40,
        "entropy_coef": 0.01,
        "target_kl": 0.5,
        "kl": {"placement": "loss", "estimator": "k3", "controller": "adaptive", "horizon": 200},
    }
    batches = [hand_made(16, seed=step, version=step, truncated=[3]) for step in range(5)]
    learner = ppo_learner(options, ranks=ranks)
    metrics = [learner.update(step, batches[step]) for step in range(3)]
    learner.save(str(directory / f"ppo-{ranks.world}"))
    metrics += [learner.update(step, batches[step]) for step in range(3, 5)]
    resumed = ppo_learner(options, ranks=ranks)
    # A checkpoint does not depend on the number of ranks that wrote it.
    other = directory / f"ppo-{3 - ranks.world}"
    resumed.load(str(other if (other / "learner.pt").exists() else directory / f"ppo-{ranks.world}"))
    again = [resumed.update(step, batches[step]) for step in range(3, 5)]
    published = learner.publish()
    assert (published is not None) is ranks.first
    logprobs = learner.logprobs_of([item.trajectory for item in batches[0]])
    learner.export(str(directory / f"ppo-{ranks.world}-policy"), str(directory / f"ppo-{ranks.world}-critic"))
    assert learner._critic is not None
    assert resumed._critic is not None
    return {
        "parameters": parameters(learner._policy.model) | _named("critic", parameters(learner._critic.model)),
        "metrics": metrics,
        "resumed": parameters(resumed._policy.model) | _named("critic", parameters(resumed._critic.model)),
        "resumed_metrics": [*metrics[:3], *again],
        "tokens": learner.tokens,
        "published": _unpacked(published),
        "logprobs": [torch.from_numpy(row) for row in logprobs],
    }


def estimators(ranks: Ranks, directory: Path) -> dict[str, Any]:
    """One update by each estimator with each aggregation of the loss."""
    outcome: dict[str, Any] = {}
    for kind in ("gae", "rloo", "grpo", "reinforce"):
        for aggregation in ("token", "sequence"):
            options = {"advantage": kind, "loss_aggregation": aggregation, "optim": STEADY, "critic_optim": STEADY}
            learner = ppo_learner(options | {"micro_batch_tokens": 40}, ranks=ranks)
            metrics = learner.update(0, hand_made(16, seed=1, truncated=[3]))
            changed = parameters(learner._policy.model)
            if learner._critic is not None:
                changed |= _named("critic", parameters(learner._critic.model))
            outcome[f"{kind} {aggregation}"] = {"parameters": changed, "metrics": metrics}
    return outcome


def poisoned(ranks: Ranks, directory: Path) -> dict[str, Any]:
    """A gradient that is not finite on the last rank alone."""
    learner = ppo_learner({"advantage": "reinforce", "epochs": 1, "minibatches": 1}, ranks=ranks)
    before = parameters(learner._policy.model)
    if ranks.rank == ranks.world - 1:
        backward = learner._policy.backward
        learner._policy.backward = lambda loss: backward(loss * float("nan"))  # type: ignore[method-assign]
    metrics = learner.update(0, hand_made(16, seed=1))
    return {"before": before, "parameters": parameters(learner._policy.model), "metrics": [metrics]}


def _named(prefix: str, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def _unpacked(published: tuple[WeightManifest, Any] | None) -> dict[str, torch.Tensor] | None:
    return None if published is None else {name: value.clone() for name, value in unpack(*published)}


CASES: dict[str, Callable[[Ranks, Path], dict[str, Any]]] = {
    "sft": lambda ranks, directory: supervised("sft", ranks, directory),
    "reward": lambda ranks, directory: supervised("reward", ranks, directory),
    "ppo": ppo,
    "estimators": estimators,
    "poisoned": poisoned,
}


def main(cases: str, rank: str, world: str, address: str, directory: str) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank=int(rank), world=int(world))
    if address == "choose":
        address = free_address("127.0.0.1")
        partial = Path(directory) / "address.partial"
        partial.write_text(address)
        partial.rename(Path(directory) / "address")
    init_process_group(ranks, init_method=f"tcp://{address}", device="cpu", timeout=60.0)
    for case in cases.split(","):
        outcome = CASES[case](ranks, Path(directory))
        if ranks.first:
            torch.save(outcome, Path(directory) / f"{case}-{world}.pt")
    if ranks.world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(*sys.argv[1:])
