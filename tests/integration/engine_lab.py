"""Tiny policies and real engines for tests; engines run in a process of their own, which they take over."""

import gc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rayrlhf.config import RolloutConfig, SamplingConfig
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.models.checkpoint_names import CheckpointNames
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_policy as make_lm
from rayrlhf.rollout.engine import RolloutEngine
from rayrlhf.types import RolloutRequest, SampleId, Trajectory, WeightManifest
from rayrlhf.weights.codec import pack_buckets
from rayrlhf.weights.manifest import plan_buckets

T = TypeVar("T")

VOCAB = 128
EOS = [1, 5]
STRANGE_END = 9
MAX_LENGTH = 256
TEMPERATURE = 0.7


def make_policy(directory: Path, *, seed: int, tied: bool, vocab: int = VOCAB) -> Path:
    """A policy whose every weight, biases and norms included, is random and large enough to matter."""
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=EOS[0],
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * noise if "norm" in name else 0.3 * noise)
    # Defaults that the engine must ignore: they would bend the distribution, or end responses at a token of their own.
    ends = [EOS[0], STRANGE_END]
    model.generation_config.update(do_sample=True, top_k=5, top_p=0.5, repetition_penalty=1.5, eos_token_id=ends)
    model.save_pretrained(directory)
    return directory


def make_judge(directory: Path, *, template: str | None = None) -> Path:
    """A random causal language model, whose tokenizer has tokens for the answers A and B, each with and without a space."""
    shape = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
    }
    tokenizer = train_tokenizer(["Which response is better? A or B, A or B."], vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    export_model(make_lm(shape, tokenizer, seed=3), tokenizer, directory)
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa").eval()


def hf_logprobs(
    directory: Path, rows: list[Trajectory], *, temperature: float, dtype: torch.dtype = torch.float32
) -> list[np.ndarray]:
    """Log-probs of the responses by stock transformers, one sequence at a time: the independent reference."""
    model = load(directory, dtype)
    result = []
    for row in rows:
        ids = torch.tensor(np.concatenate([row.prompt_ids, row.response_ids]), dtype=torch.long)
        with torch.no_grad():
            logits = model(ids[None]).logits[0].float()
        start = len(row.prompt_ids)
        table = torch.log_softmax(logits[start - 1 : -1] / temperature, dim=-1)
        result.append(table.gather(1, ids[start:, None])[:, 0].numpy())
    return result


def requests(*, prompts: int = 4, samples: int = 4, length: int = 140, seed: int = 0) -> list[RolloutRequest]:
    """Prompts longer than a block of the key-value cache, so that prefix caching has something to cache."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(6, VOCAB, size=length).astype(np.int32) for _ in range(prompts)]
    return [
        RolloutRequest(sample_id=SampleId("test", 0, i, k), prompt_ids=prompt, seed=1000 * i + k)
        for i, prompt in enumerate(drawn)
        for k in range(samples)
    ]


def publish(
    directory: Path, *, version: int, dtype: torch.dtype = torch.float32
) -> tuple[WeightManifest, list[np.ndarray]]:
    """A policy as the learner publishes it, read-only as the object store hands it out."""
    model = load(directory)
    names = CheckpointNames(model, dtype=dtype)
    return freeze(*publish_tensors(dict(names.published(model)), version=version, dtype=dtype))


def publish_tensors(
    named: dict[str, torch.Tensor], *, version: int, dtype: torch.dtype = torch.float32
) -> tuple[WeightManifest, list[np.ndarray]]:
    plan = plan_buckets([(name, dtype, tuple(t.shape)) for name, t in named.items()], bucket_bytes=50_000)
    return pack_buckets(plan, named.items(), version=version)


def freeze(manifest: WeightManifest, buckets: list[np.ndarray]) -> tuple[WeightManifest, list[np.ndarray]]:
    for bucket in buckets:
        bucket.flags.writeable = False
    return manifest, buckets


def checksum(buckets: list[np.ndarray]) -> list[int]:
    return [zlib.crc32(bucket.data) for bucket in buckets]


@contextmanager
def engine(directory: Path, *, max_new_tokens: int = 32, **rollout: Any) -> Iterator[RolloutEngine]:
    """A real engine; only inside `LabProcess.run`."""
    made = RolloutEngine(
        str(directory),
        sampling=SamplingConfig(temperature=TEMPERATURE, max_new_tokens=max_new_tokens),
        rollout=RolloutConfig(**{"threads": 1, "kv_cache_gib": 0.03125, **rollout}),
        max_length=MAX_LENGTH,
        device="cpu",
        eos_token_ids=EOS,
        seed=0,
    )
    try:
        yield made
    finally:
        made.shutdown()


class LabProcess:
    """One process in which engines live, one after another."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=_spare_collections)

    def run(self, scenario: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `scenario`, a module-level function of a test file, in the engine process."""
        return self._pool.submit(scenario, *args, **kwargs).result(timeout=240)

    def close(self) -> None:
        self._pool.shutdown()


def _spare_collections() -> None:
    # An engine's life asks for eight full collections, each a walk over all that vLLM imports: most of its seconds.
    gc.collect = lambda *_: 0  # type: ignore[assignment]


@dataclass(frozen=True)
class Pair:
    """Two policies of one architecture."""

    old: Path
    new: Path

    @classmethod
    def make(cls, directory: Path, *, tied: bool) -> "Pair":
        old = make_policy(directory / "old", seed=1, tied=tied)
        return cls(old, make_policy(directory / "new", seed=2, tied=tied))
