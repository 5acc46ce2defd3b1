from pathlib import Path

from rayrlhf.config import RunConfig, load_config
from rayrlhf.pipelines.folder import RunFolder

ROOT = Path(__file__).parents[3]


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "quickstart.yaml", [f"output_dir={tmp_path}", *overrides])


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
