"""What a process that holds an engine needs in its environment before vLLM is imported."""

from rayrlhf.config import RolloutConfig


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


def runs_eagerly(rollout: RolloutConfig, *, device: str) -> bool:
    """Whether graph compilation is skipped; the default is to compile on CUDA alone."""
    return rollout.enforce_eager if rollout.enforce_eager is not None else device == "cpu"
