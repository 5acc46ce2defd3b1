"""Every causal architecture that transformers and this vLLM share: engine against learner before and after an update.

    python tests/benchmarks/architectures.py [MODEL_TYPE ...] [--dtype bfloat16] [--output FILE]

Each model is made tiny and random, with weights large enough for faults to show, in a process of its own. `before` is
the loader from disk, `after` the path of published weights, `stale` what an engine that kept the old weights would show.
"""

import argparse
import copy
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rayrlhf.algorithms.mismatch import Mismatch, mismatch_quantiles
from rayrlhf.config import RolloutConfig, SamplingConfig
from rayrlhf.data.batching import collate
from rayrlhf.errors import RayrlhfError
from rayrlhf.models.checkpoint_names import CheckpointNames
from rayrlhf.models.device import resolve_dtype
from rayrlhf.models.forward import policy_forward
from rayrlhf.models.load import load_policy
from rayrlhf.rollout.engine import RolloutEngine
from rayrlhf.rollout.environment import engine_environment
from rayrlhf.rollout.parity import FLOAT32
from rayrlhf.types import RolloutRequest, SampleId, Trajectory
from rayrlhf.weights.codec import pack_buckets
from rayrlhf.weights.manifest import plan_buckets

VOCAB, LENGTH, SECONDS = 128, 128, 150.0
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
    # latent attention
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    # state spaces
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_ssm": 128,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "n_mamba_heads": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
"""Taken where a configuration has the field."""
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32},
    "mamba2": {"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1},
    "glm4_moe": {"head_dim": 32},
    # Fields of the published configurations that transformers' classes do not name, and vLLM reads.
    "afmoe": {"score_func": "sigmoid"},
    "glm4_moe_lite": {"first_k_dense_replace": 1},
    "hy_v3": {"first_k_dense_replace": 1},
    "lfm2": {"block_dim": 64, "block_ff_dim": 96, "conv_dim": 64, "conv_dim_out": 64},
    "deepseek_v3": {"topk_method": "noaux_tc"},
    "llama4_text": {"num_experts_per_tok": 1},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "gptj": {"rotary_dim": 32},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": None},
    "bloom": {"n_head": 2, "n_layer": 2},
}
"""What some need besides."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one architecture showed; `said` is why it did not get further."""

    model_type: str
    before: Mismatch | None = None
    after: Mismatch | None = None
    stale: Mismatch | None = None
    said: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        if self.after is None or self.before is None:
            return "refused" if self.said else "none"
        over = [
            n for n, m in (("before", self.before), ("after", self.after)) if m.p99 > FLOAT32.p99 or m.p50 > FLOAT32.p50
        ]
        return f"differs {' and '.join(over)}" if over else "equal"

    def __str__(self) -> str:
        cells = [_cell(self.before), _cell(self.after), _cell(self.stale)]
        return f"{self.model_type:20} {self.verdict:24} {' '.join(f'{c:>19}' for c in cells)} {self.seconds:5.0f} s  {self.said}"


def _cell(mismatch: Mismatch | None) -> str:
    return "-" if mismatch is None else f"{mismatch.p50:.1e} {mismatch.p99:.1e}"


def shared_types() -> list[str]:
    """The causal model types of transformers whose class this vLLM serves; of those with images the text part alone."""
    from vllm.model_executor.models.registry import ModelRegistry

    served = set(ModelRegistry.get_supported_archs())
    causal = [kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name in served]
    return [kind for kind in causal if not CONFIG_MAPPING[kind].sub_configs]


def tiny_policy(directory: Path, model_type: str, *, seed: int = 0) -> None:
    """A random policy of the type whose every weight matters."""
    known = AutoConfig.for_model(model_type)
    sizes = {name: value for name, value in SIZES.items() if hasattr(known, name)} | OWN.get(model_type, {})
    config = AutoConfig.for_model(model_type, **{name: value for name, value in sizes.items() if value is not None})
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 20_000_000:
        raise ValueError(f"cannot be made tiny by these sizes: {size:,} parameters")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    shake(model, 0.15, seed=seed)
    model.generation_config.update(eos_token_id=1, pad_token_id=0, bos_token_id=2)
    model.save_pretrained(directory)


@torch.no_grad()
def shake(model: torch.nn.Module, deviation: float, *, seed: int) -> None:
    """Add noise to every weight, as an optimizer that moves all of them does."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(deviation * torch.randn(parameter.shape, generator=generator))


def learner_policy(directory: Path) -> Any:
    """The policy as a learner loads it, kept out of the hands of vLLM.

    Where vLLM runs transformers' own classes it decorates them, here in the process of the learner too.
    """
    model = load_policy(str(directory))
    for module in model.modules():
        module.do_not_compile = True  # type: ignore[assignment]
    return model


@torch.no_grad()
def learner_logprobs(model: Any, rows: list[Trajectory]) -> list[np.ndarray]:
    sequences = [np.concatenate([row.prompt_ids, row.response_ids]) for row in rows]
    batch = collate(sequences, [len(row.prompt_ids) for row in rows], range(len(rows)), pad_id=0)
    logprobs = policy_forward(model, batch, temperature=1.0, with_entropy=False).logprobs
    return [logprobs[i][batch.loss_mask[i]].numpy() for i in range(len(rows))]


def compare(model_type: str, rollout: RolloutConfig) -> Row:
    """Before, after and stale, or why not."""
    started = time.monotonic()
    seen: dict[str, Mismatch] = {}
    said = ""
    try:
        with tempfile.TemporaryDirectory() as directory:
            _compare(Path(directory), model_type, seen, rollout)
    except RayrlhfError as error:
        said = str(error)
    except Exception as error:  # noqa: BLE001  (whatever a library raises is a row of the table)
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]} ({Path(where.filename).name}:{where.lineno})"
    return Row(model_type=model_type, said=said, seconds=time.monotonic() - started, **seen)


def _compare(directory: Path, model_type: str, seen: dict[str, Mismatch], rollout: RolloutConfig) -> None:
    tiny_policy(directory, model_type)
    model = learner_policy(directory)
    old = copy.deepcopy(model)
    names = CheckpointNames(model, dtype=resolve_dtype(rollout.dtype, torch.device("cpu")))
    engine = RolloutEngine(
        str(directory),
        sampling=SamplingConfig(max_new_tokens=24),
        rollout=rollout,
        max_length=LENGTH,
        device="cpu",
        eos_token_ids=[1],
        seed=0,
    )
    rng = np.random.default_rng(0)
    requests = [
        RolloutRequest(
            sample_id=SampleId("test", 0, i, 0), prompt_ids=rng.integers(3, VOCAB, size=8 + i).astype(np.int32), seed=i
        )
        for i in range(16)
    ]
    rows = engine.generate(requests)
    seen["before"] = mismatch_quantiles([r.rollout_logprobs for r in rows], learner_logprobs(model, rows))
    shake(model, 0.05, seed=1)
    plan = plan_buckets(names.tensors, bucket_bytes=1_000_000)
    manifest, buckets = pack_buckets(plan, names.published(model), version=1)
    engine.apply_weights(manifest, buckets)
    rows = engine.generate(requests)
    drawn = [r.rollout_logprobs for r in rows]
    seen["after"] = mismatch_quantiles(drawn, learner_logprobs(model, rows))
    seen["stale"] = mismatch_quantiles(drawn, learner_logprobs(old, rows))


def apart(function: Callable[[str], Row], model_type: str) -> Row:
    """Run in a forked process, so that vLLM is imported once and each engine has a process of its own."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    started = time.monotonic()
    child = context.Process(target=_answer, args=(send, function, model_type))
    child.start()
    send.close()
    try:
        return (
            receive.recv() if receive.poll(SECONDS) else Row(model_type=model_type, said=f"no answer in {SECONDS:g} s")
        )
    except EOFError:
        child.join(10)
        said = f"its process died with exit code {child.exitcode}"
        return Row(model_type=model_type, said=said, seconds=time.monotonic() - started)
    finally:
        child.kill()
        child.join()


def _answer(send: Any, function: Callable[[str], Row], model_type: str) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    send.send(function(model_type))
    send.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model_types", nargs="*", help="default: all that both libraries have")
    parser.add_argument("--output", type=Path, help="where each row is appended, as JSON")
    parser.add_argument("--dtype", default="float32", help="of the engine")
    arguments = parser.parse_args()
    rollout = RolloutConfig(threads=1, kv_cache_gib=0.0625, dtype=arguments.dtype)
    for name, value in engine_environment(rollout, device="cpu").items():
        os.environ.setdefault(name, value)
    torch.set_num_threads(1)
    import vllm  # noqa: F401  (once, for all processes forked from this one)

    for model_type in arguments.model_types or shared_types():
        row = apart(partial(compare, rollout=rollout), model_type)
        print(row, flush=True)
        if arguments.output:
            with arguments.output.open("a") as file:
                file.write(json.dumps(asdict(row) | {"verdict": row.verdict}) + "\n")


if __name__ == "__main__":
    main()
