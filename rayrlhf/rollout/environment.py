"""What a process that holds an engine needs before vLLM is imported."""

import logging
import os

import torch

from rayrlhf.config import RolloutConfig
from rayrlhf.errors import ResourceError


def engine_environment(rollout: RolloutConfig, *, device: str) -> dict[str, str]:
    """Environment variables for the process of one rollout worker."""
    threads = str(rollout.compute_threads)
    variables = {
        # The engine core in this process: buckets pass by reference, and no child survives the worker.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    if device == "cpu":
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if runs_eagerly(rollout, device=device):
            # Compiling vLLM's few decorated helpers takes seconds at the first generation and gains nothing on a CPU.
            variables["TORCHDYNAMO_DISABLE"] = "1"
    return variables


def enter_engine_process(rollout: RolloutConfig, *, device: str) -> None:
    """Make this process one that an engine may take over; ResourceError where the installed vLLM runs elsewhere."""
    for name, value in engine_environment(rollout, device=device).items():
        os.environ.setdefault(name, value)
    # Buckets pass by reference, which takes an engine core in this process whatever the environment says.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # The last chance: an in-process CPU engine makes later calls do nothing.
    torch.set_num_threads(rollout.compute_threads)
    # It tells every process of a CPU machine that there are no kernels for GPUs.
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    from vllm.platforms import current_platform

    if current_platform.device_type != device:
        raise ResourceError(
            f"The engine is to run on {device}, but the installed vLLM runs on {current_platform.device_type}; install the "
            f"package's {'gpu' if device == 'cuda' else 'cpu'} extra or set device."
        )


def runs_eagerly(rollout: RolloutConfig, *, device: str) -> bool:
    """Whether graph compilation is skipped; the default is to compile on CUDA alone."""
    return rollout.enforce_eager if rollout.enforce_eager is not None else device == "cpu"
