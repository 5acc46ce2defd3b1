"""What a rollout process finds in its environment."""

import subprocess
import sys

from rayrlhf.config import RolloutConfig
from rayrlhf.rollout.environment import engine_environment, runs_eagerly


def test_the_engine_core_stays_in_the_process_and_threads_are_the_configured_ones() -> None:
    variables = engine_environment(RolloutConfig(threads=3), device="cpu")
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == "3"
    assert all(isinstance(value, str) for value in variables.values())


def test_threads_follow_the_cpus_when_they_are_not_given() -> None:
    assert engine_environment(RolloutConfig(cpus=0.5), device="cpu")["OMP_NUM_THREADS"] == "1"
    assert engine_environment(RolloutConfig(cpus=4), device="cpu")["OMP_NUM_THREADS"] == "4"


def test_compilation_is_off_on_cpu_and_on_on_cuda_unless_configured() -> None:
    assert runs_eagerly(RolloutConfig(), device="cpu")
    assert not runs_eagerly(RolloutConfig(), device="cuda")
    assert runs_eagerly(RolloutConfig(enforce_eager=True), device="cuda")
    assert "TORCHDYNAMO_DISABLE" in engine_environment(RolloutConfig(), device="cpu")
    assert "TORCHDYNAMO_DISABLE" not in engine_environment(RolloutConfig(enforce_eager=False), device="cpu")
    assert "TORCHDYNAMO_DISABLE" not in engine_environment(RolloutConfig(enforce_eager=True), device="cuda")


def test_importing_the_engine_module_does_not_import_vllm() -> None:
    check = "import sys, rayrlhf.rollout.engine; sys.exit('vllm' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)
