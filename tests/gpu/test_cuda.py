"""What needs a CUDA device: the same pipeline with the same command."""

import json
from pathlib import Path

import pytest
import torch

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_auto_picks_cuda_with_bfloat16() -> None:
    from rayrlhf.models.device import resolve_device, resolve_dtype

    device = resolve_device("auto")
    assert device.type == "cuda"
    assert resolve_dtype("auto", device) == torch.bfloat16


def test_the_learner_steps_alike_on_cuda_and_cpu() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rayrlhf.data.batching import collate
    from rayrlhf.models.forward import policy_forward

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = Qwen2ForCausalLM(config).eval()
    import numpy as np

    batch = collate([np.arange(n, dtype=np.int32) for n in (9, 5)], [2, 1], [0, 1])
    on_cpu = policy_forward(model, batch, temperature=0.7, with_entropy=False).logprobs
    on_cuda = policy_forward(model.cuda(), batch.to(torch.device("cuda")), temperature=0.7, with_entropy=False).logprobs
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=1e-4, rtol=1e-4)


def test_the_tiny_pipeline_runs_on_one_gpu(tmp_path: Path) -> None:
    from rayrlhf.config import load_config
    from rayrlhf.pipelines.run import run_stages

    shared = [f"{role}.gpus=0.3" for role in ("rollout", "scoring", "learner")]
    config = load_config(
        QUICKSTART,
        [
            f"output_dir={tmp_path}",
            "sft.max_steps=12",
            "reward.max_steps=12",
            "ppo.updates=3",
            "rollout.gpu_memory_utilization=0.3",
            *shared,
        ],
    )
    run = run_stages(config, resume=False)
    ppo = json.loads((run / "summary.json").read_text())["stages"]["ppo"]
    assert ppo["samples_lost"] == ppo["samples_duplicated"] == 0
    assert ppo["policy_versions"] == 3
