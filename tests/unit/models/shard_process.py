"""One rank of a sharded model in a process of its own: `python shard_process.py RANK WORLD DIRECTORY`.

Rank 0 writes what came of each case to DIRECTORY/CASE-WORLD.pt.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from models_lab import batch_of, policy_model, sequences, tokenizer
from torch import Tensor

from rayrlhf.models.checkpoint_names import CheckpointNames
from rayrlhf.models.export import export_model
from rayrlhf.models.forward import policy_forward, sequence_scores, token_values
from rayrlhf.models.load import load_critic, load_reward_model
from rayrlhf.models.sharding import (
    clip_gradients,
    full_model_state,
    full_state,
    full_tensors,
    load_full_state,
    shard,
    whole,
)
from rayrlhf.types import MicroBatch

CASES = ("qwen2", "qwen2-tied", "gpt2", "reward", "critic")
CPU = torch.device("cpu")
MAX_NORM = 0.5
Loss = Callable[[Any, MicroBatch], Tensor]


def run(case: str, rank: int, world: int, directory: Path) -> dict[str, Any]:
    """Three optimizer steps, each with passes that need no gradient before and after it, then two more twice."""
    model, optimizer = fresh(case, world, directory)
    untouched = copied(full_state(model, optimizer)["model"])
    nothing = full_state(model, optimizer)["optimizer"]
    first = one_step(case, model, optimizer, rank, world, step=0)
    norms = [first["norm"], *(one_step(case, model, optimizer, rank, world, step)["norm"] for step in (1, 2))]
    parameters = copied(named(model))
    saved = full_state(model, optimizer)
    if rank == 0:
        torch.save(saved, directory / f"state-{case}-{world}.pt")
    state = full_model_state(model)
    if rank == 0:
        export_model(model, tokenizer(), directory / f"export-{case}-{world}", state_dict=state)
    if world > 1:
        dist.barrier()
    straight = [one_step(case, model, optimizer, rank, world, step)["norm"] for step in (3, 4)]
    return {
        "optimizer_before": nothing,
        "first_state": untouched,
        "gradients": first["gradients"],
        "norms": norms + straight,
        "parameters": parameters,
        "later": copied(named(model)),
        "resumed": {w: resumed(case, rank, world, directory, writer=w) for w in writers(case, directory)},
        "state_names": list(state),
    }


def named(model: Any) -> dict[str, Tensor]:
    return dict(full_tensors(model, [name for name, _ in model.named_parameters()]))


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def writers(case: str, directory: Path) -> list[int]:
    """The numbers of ranks that have left a state."""
    return [world for world in (1, 2) if (directory / f"state-{case}-{world}.pt").exists()]


def resumed(case: str, rank: int, world: int, directory: Path, *, writer: int) -> dict[str, Tensor]:
    """The parameters two steps after the state that `writer` ranks left, in a model that was trained otherwise."""
    model, optimizer = fresh(case, world, directory)
    one_step(case, model, optimizer, rank, world, step=9)
    state = torch.load(directory / f"state-{case}-{writer}.pt", weights_only=True)
    load_full_state(model, optimizer, state, world=world)
    for step in (3, 4):
        one_step(case, model, optimizer, rank, world, step)
    return named(model)


def fresh(case: str, world: int, directory: Path) -> tuple[Any, torch.optim.Optimizer]:
    if case == "reward":
        model = load_reward_model(str(directory / "reward"))
    elif case == "critic":
        model = load_critic(str(directory / "reward"))
    else:
        model = policy_model(case)
    sharded = shard(model, world=world, device=CPU)
    return sharded, torch.optim.AdamW(sharded.parameters(), lr=1e-3, eps=1e-4, weight_decay=0.1, fused=True)


def one_step(
    case: str, model: Any, optimizer: torch.optim.Optimizer, rank: int, world: int, step: int
) -> dict[str, Any]:
    """Seven rows dealt over the ranks in micro-batches; the shares of the loss add up to one over all rows."""
    rows = sequences([9, 3, 12, 5, 7, 4, 10], seed=step)
    mine = [rows[i : i + 1] for i in range(rank, len(rows), world)]
    mine += [None] * (-(-len(rows) // world) - len(mine))  # type: ignore[list-item]
    batches = [batch_of(part) if part is not None else batch_of(sequences([1])) for part in mine]
    with torch.no_grad():
        loss_of(case, model, batches[0])
    for batch in batches:
        (loss_of(case, model, batch) / sum(len(row) for row in rows)).backward()
    gradients = {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
    norm = clip_gradients(model, MAX_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        loss_of(case, model, batches[0])
    return {"gradients": gradients, "norm": norm}


def loss_of(case: str, model: Any, batch: MicroBatch) -> Tensor:
    """A share of the loss; exactly 0 for a batch that trains nothing."""
    if case == "reward":
        scores = sequence_scores(model, batch)
        return ((scores - 1.0) ** 2).sum() if batch.loss_mask.any() else 0.0 * scores.sum()
    if case == "critic":
        return (((token_values(model, batch) - 1.0) ** 2) * batch.loss_mask).sum()
    outputs = policy_forward(model, batch, temperature=0.7, with_entropy=True)
    assert outputs.entropy is not None
    return -(outputs.logprobs + 0.1 * outputs.entropy).sum()


def published_experts(world: int) -> dict[str, Tensor]:
    """A mixture of experts as it is published after a pass that leaves parameters gathered."""
    model = policy_model("mixtral", num_local_experts=4)
    names = CheckpointNames(model, dtype=torch.float32)
    sharded: Any = shard(model, world=world, device=CPU)
    with torch.no_grad():
        loss_of("mixtral", sharded, batch_of(sequences([5])))
    return copied(dict(names.published(sharded)))


if __name__ == "__main__":
    rank, world, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=world)
    for case in CASES:
        outcome = run(case, rank, world, directory)
        if rank == 0:
            torch.save(outcome, directory / f"{case}-{world}.pt")
    experts = published_experts(world)
    if rank == 0:
        torch.save(experts, directory / f"experts-{world}.pt")
    dist.destroy_process_group()
