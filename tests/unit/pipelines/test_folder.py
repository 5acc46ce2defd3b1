import subprocess
import sys
from pathlib import Path

import pytest

from rayrlhf.config import RunConfig, load_config
from rayrlhf.errors import CheckpointError, ConfigError
from rayrlhf.pipelines.folder import RunFolder

ROOT = Path(__file__).parents[3]


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "quickstart.yaml", [f"output_dir={tmp_path}", *overrides])


def test_a_second_driver_is_refused_and_a_dead_one_is_not(tmp_path: Path) -> None:
    hold = (
        "import sys; from rayrlhf.config import load_config; from rayrlhf.pipelines.folder import RunFolder;"
        f"f = RunFolder(load_config('configs/quickstart.yaml', ['output_dir={tmp_path}'])); f.claim();"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="Another run is writing"):
            RunFolder(config(tmp_path)).claim()
        other.kill()
    RunFolder(config(tmp_path)).claim()


def test_an_earlier_run_is_moved_aside_whole(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path))
    assert folder.set_aside() is None
    folder.root.mkdir(parents=True)
    folder.save_config(config(tmp_path))
    (folder.root / "metrics.jsonl").write_text("precious\n")
    aside = folder.set_aside()
    assert aside is not None
    assert (aside / "metrics.jsonl").read_text() == "precious\n"
    assert not folder.root.exists()


def test_a_resumed_run_keeps_what_is_fixed_and_reports_the_rest(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path))
    folder.root.mkdir(parents=True)
    folder.save_config(config(tmp_path))
    assert folder.changed_since(config(tmp_path)) == []
    assert folder.changed_since(config(tmp_path, "ppo.updates=99")) == ["ppo.updates"]
    with pytest.raises(ConfigError, match=r"seed was 0 .* and is 1 now"):
        folder.changed_since(config(tmp_path, "seed=1"))


def test_clearing_one_stage_leaves_the_others(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path))
    for name in ("sft", "reward_model", "policy", "critic"):
        (folder.root / name).mkdir(parents=True)
        (folder.root / name / "config.json").write_text("{}")
    for path in ("sft/step_000001", "step_000002"):
        (folder.root / "checkpoints" / path).mkdir(parents=True)
    folder.clear_stage("ppo")
    assert [folder.finished(s) for s in ("sft", "reward", "ppo")] == [True, True, False]
    assert not (folder.root / "critic").exists()
    assert (folder.root / "checkpoints" / "sft" / "step_000001").exists()
    assert not (folder.root / "checkpoints" / "step_000002").exists()
