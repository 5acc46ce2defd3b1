"""Scores of a reward model by vLLM's own pooling engine."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from rayrlhf.config import RolloutConfig
from rayrlhf.errors import ModelError
from rayrlhf.rollout.environment import engine_environment
from rayrlhf.rollout.wording import reason_of


def pooled_scores(
    directory: str, sequences: Sequence[Sequence[int]], *, max_length: int, device: str, dtype: str
) -> list[float]:
    """The raw score of each token sequence by an engine that ends with the call."""
    for name, value in engine_environment(RolloutConfig(), device=device).items():
        os.environ.setdefault(name, value)
    from vllm import LLM, PoolingParams

    try:
        llm: Any = LLM(
            model=directory,
            runner="pooling",
            dtype=dtype,
            max_model_len=max_length,
            enforce_eager=True,
            kv_cache_memory_bytes=2**28 if device == "cpu" else None,
            use_tqdm_on_load=False,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"vLLM cannot serve the reward model {directory}: {reason_of(error)}") from error
    try:
        prompts = [{"prompt_token_ids": list(ids)} for ids in sequences]
        outputs = llm.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
        return [float(output.outputs.probs[0]) for output in outputs]
    finally:
        with contextlib.suppress(RuntimeError, OSError):
            llm.llm_engine.engine_core.shutdown()
