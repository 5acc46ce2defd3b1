"""Reward models against the limit of their machine: the scoring pool and the trainer beside bare PyTorch.

    python tests/benchmarks/reward_throughput.py [--rounds 5] [--device cpu]

Prints sequences a second of the scoring pool (one worker, through Ray) over those of a bare forward of the same two
models on length-sorted batches, and training tokens a second of a supervised learner over those of a bare loop on the
same batches; both sides take turns in one run, each in a process of its own with the same threads. Ratios are medians
over rounds. Peak memory is the resident set of each process.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch

from rayrlhf.actors.placement import actor_options, spawn
from rayrlhf.actors.scoring import ScoringPool
from rayrlhf.config import RunConfig, parse_config
from rayrlhf.data.encoded import encoded_preferences
from rayrlhf.data.prepared import tokenizer_texts
from rayrlhf.data.tokenizer import load_tokenizer, train_tokenizer
from rayrlhf.learner.build import build_reward
from rayrlhf.learner.process_group import Ranks
from rayrlhf.models.export import export_model, export_reward_model
from rayrlhf.models.load import load_policy, load_reward_model, make_policy, make_reward_model
from rayrlhf.types import SampleId, Trajectory, VersionSpan

SEQUENCES = 1024
BATCH = 32
STEPS = 16
INIT = {
    "model_type": "qwen2",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def configuration(device: str) -> RunConfig:
    role = {"cpus": 1.0, "threads": 2}
    return parse_config(
        {
            "name": "benchmark",
            "device": device,
            "model": {"init": INIT, "vocab_size": 640, "max_length": 128},
            "data": {"task": {"preferences": STEPS * BATCH}, "max_prompt_tokens": 64},
            "sampling": {"max_new_tokens": 64},
            "reward": {"prompts_per_step": BATCH, "micro_batch_tokens": 8192, "optim": {"lr": 1e-5}},
            "scoring": {**role, "micro_batch_tokens": 4096},
            "learner": role,
        }
    )


def make_models(config: RunConfig, root: Path) -> None:
    tokenizer = train_tokenizer(tokenizer_texts(config), vocab_size=config.model.vocab_size)
    export_model(make_policy(INIT, tokenizer, seed=0), tokenizer, root / "policy")
    model = make_reward_model(str(root / "policy"), tokenizer, seed=1)
    export_reward_model(model, tokenizer, root / "reward", state_dict=dict(model.state_dict()))


def make_trajectories(vocabulary: int) -> list[Trajectory]:
    """Lengths from 16 to 112 tokens, as uneven as those of a policy."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(SEQUENCES):
        prompt, response = (rng.integers(2, vocabulary, size=int(n)).astype(np.int32) for n in rng.integers(8, 56, 2))
        made.append(
            Trajectory(
                sample_id=SampleId("ppo", 0, number, 0),
                prompt_ids=prompt,
                response_ids=response,
                rollout_logprobs=np.zeros(len(response), dtype=np.float32),
                finish="eos",
                version_spans=(VersionSpan(version=0, start=0, end=len(response)),),
            )
        )
    return made


class BareScorer:
    """The least that gives the same numbers: two forwards on length-sorted batches of one token budget."""

    def __init__(self, root: str, budget: int) -> None:
        self.reward_model = load_reward_model(f"{root}/reward")
        self.reference = load_policy(f"{root}/policy")
        self.budget = budget

    @torch.inference_mode()
    def score(self, trajectories: list[Trajectory]) -> float:
        """Seconds for all of them."""
        begun = time.perf_counter()
        order = sorted(range(len(trajectories)), key=lambda i: -_length(trajectories[i]))
        start = 0
        while start < len(order):
            count = max(1, self.budget // _length(trajectories[order[start]]))
            self._batch([trajectories[i] for i in order[start : start + count]])
            start += count
        return time.perf_counter() - begun

    def _batch(self, batch: list[Trajectory]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths, starts = (torch.tensor([n(t) for t in batch]) for n in (_length, lambda t: len(t.prompt_ids)))
        ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for row, t in enumerate(batch):
            ids[row, : lengths[row]] = torch.from_numpy(np.concatenate([t.prompt_ids, t.response_ids]).astype(np.int64))
        places = torch.arange(ids.shape[1])
        mask = places < lengths.unsqueeze(1)
        hidden = self.reward_model.model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        scores = self.reward_model.score(hidden[torch.arange(len(batch)), lengths - 1])
        answered = mask & (places >= starts.unsqueeze(1))
        hidden = self.reference.model(ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
        logits = self.reference.lm_head(hidden[answered[:, 1:]]).float()
        return scores, logits.gather(-1, ids[answered].unsqueeze(1)).squeeze(1) - logits.logsumexp(-1)

    def memory(self) -> int:
        return int(psutil.Process().memory_info().rss)


class BareTrainer:
    """A plain loop: forward, Bradley-Terry, backward, clip, AdamW."""

    def __init__(self, config: RunConfig, root: str) -> None:
        tokenizer = load_tokenizer(f"{root}/policy")
        self.model: Any = make_reward_model(f"{root}/policy", tokenizer, seed=1)
        self.rows = list(encoded_preferences(config, f"{root}/policy").train)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
        self.done = 0

    def train(self, steps: int) -> float:
        """Seconds of some steps."""
        begun = time.perf_counter()
        for _ in range(steps):
            rows = [self.rows[i % len(self.rows)] for i in range(self.done * BATCH, (self.done + 1) * BATCH)]
            self.done += 1
            sequences = [row.sequences[side] for side in (0, 1) for row in rows]
            lengths = torch.tensor([len(s) for s in sequences])
            ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
            for row, sequence in enumerate(sequences):
                ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
            mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
            hidden = self.model.model(ids, attention_mask=mask, use_cache=False).last_hidden_state
            chosen, rejected = self.model.score(hidden[torch.arange(len(ids)), lengths - 1]).squeeze(-1).chunk(2)
            torch.nn.functional.softplus(rejected - chosen).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begun

    def memory(self) -> int:
        return int(psutil.Process().memory_info().rss)


class OurTrainer:
    """The reward stage's own learner."""

    def __init__(self, config: RunConfig, root: str) -> None:
        self.learner = build_reward(config, base_dir=f"{root}/policy", ranks=Ranks(rank=0, world=1))

    def train(self, steps: int) -> float:
        """Seconds of some steps."""
        begun = time.perf_counter()
        for _ in range(steps):
            self.learner.train_step()
        return time.perf_counter() - begun

    def memory(self) -> int:
        return int(psutil.Process().memory_info().rss)


def _length(trajectory: Trajectory) -> int:
    return len(trajectory.prompt_ids) + len(trajectory.response_ids)


async def scoring(config: RunConfig, root: Path, device: str, rounds: int) -> dict[str, Any]:
    pool = ScoringPool(
        config, reward_model_dir=str(root / "reward"), reference_dir=str(root / "policy"), device=device, tell=print
    )
    bare = spawn(BareScorer, actor_options(config.scoring, device=device), str(root), config.scoring.micro_batch_tokens)
    await pool.start()
    trajectories = make_trajectories(600)
    ref = ray.put(trajectories)
    ours, theirs = [], []
    for number in range(rounds + 1):
        begun = time.perf_counter()
        await pool.score(ref)
        mine = time.perf_counter() - begun
        other = ray.get(bare.score.remote(ref))
        if number:  # the first round warms both
            ours.append(SEQUENCES / mine)
            theirs.append(SEQUENCES / other)
    worker = next(
        p for p in psutil.process_iter(["name", "cmdline"]) if "ScoringWorker" in " ".join(p.info["cmdline"] or [])
    )
    found = _compared(ours, theirs, "sequences/s") | {
        "memory_mib": worker.memory_info().rss / 2**20,
        "bare_memory_mib": ray.get(bare.memory.remote()) / 2**20,
    }
    pool.pool.stop()
    ray.kill(bare)
    return found


def training(config: RunConfig, root: Path, device: str, rounds: int) -> dict[str, Any]:
    options = actor_options(config.learner, device=device)
    ours, bare = (spawn(kind, options, config, str(root)) for kind in (OurTrainer, BareTrainer))
    rows = encoded_preferences(config, str(root / "policy")).train
    tokens = sum(len(s) for row in rows for s in row.sequences) * STEPS * BATCH / len(rows)
    mine, theirs = [], []
    for number in range(rounds + 1):
        pair = [tokens / ray.get(actor.train.remote(STEPS)) for actor in (ours, bare)]
        if number:
            mine.append(pair[0])
            theirs.append(pair[1])
    return _compared(mine, theirs, "tokens/s") | {
        "memory_mib": ray.get(ours.memory.remote()) / 2**20,
        "bare_memory_mib": ray.get(bare.memory.remote()) / 2**20,
    }


def _compared(ours: list[float], theirs: list[float], unit: str) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "unit": unit,
        "ours": statistics.median(ours),
        "bare": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    config = configuration(options.device)
    with tempfile.TemporaryDirectory() as folder:
        config = config.model_copy(update={"output_dir": folder})
        make_models(config, Path(folder))
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        run = partial(scoring, config, Path(folder), options.device, options.rounds)
        found = {
            "scoring": asyncio.run(run()),
            "training": training(config, Path(folder), options.device, options.rounds),
        }
        ray.shutdown()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
