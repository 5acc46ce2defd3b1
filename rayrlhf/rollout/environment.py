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
        # The in-process engine replaces torch.set_num_threads by a no-op, so the pool is sized from here.
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    if device == "cpu":
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return variables
