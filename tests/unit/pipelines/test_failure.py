"""What failure.json says of how a run ended, and when --resume is the remedy."""

import json
from pathlib import Path

import pytest

from rayrlhf.config import load_config
from rayrlhf.errors import ConfigError, WorkerError
from rayrlhf.pipelines.checkpoint import CheckpointStore
from rayrlhf.pipelines.failure import record_failure
from rayrlhf.pipelines.folder import RunFolder

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
ARGUMENTS = ["run", "a b.yaml", "name=x", "ppo.rewards=[{kind: model}]"]


def fail(folder: RunFolder, failure: BaseException) -> tuple[BaseException, dict[str, object]]:
    config = load_config(QUICKSTART, [f"output_dir={folder.root.parent}"])
    told = record_failure(folder, config, failure, stage="ppo", step=3, arguments=ARGUMENTS)
    return told, json.loads((folder.root / "failure.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(load_config(QUICKSTART, [f"output_dir={tmp_path}"]))
    folder.root.mkdir()
    return folder


def test_with_a_checkpoint_the_command_goes_on(folder: RunFolder) -> None:
    with CheckpointStore(folder.checkpoints("ppo"), keep=1).write(2, {}) as directory:
        (directory / "learner.pt").write_bytes(b"x")
    command = "rayrlhf run 'a b.yaml' name=x 'ppo.rewards=[{kind: model}]' --resume"
    told, record = fail(folder, WorkerError("learner rank 0 died."))
    assert str(told) == f"learner rank 0 died. Go on with: {command}"
    assert record["message"] == "learner rank 0 died."
    assert (record["stage"], record["step"]) == ("ppo", 3)
    assert (record["checkpoint"], record["resume"]) == ("checkpoints/step_000002", command)
    told, record = fail(folder, KeyboardInterrupt())
    assert str(told) == f"interrupted; go on with: {command}"
    assert (record["error"], record["message"]) == ("KeyboardInterrupt", "Interrupted.")
    told, _ = fail(folder, ConfigError("A key is wrong."))
    assert str(told) == "A key is wrong."


def test_with_nothing_saved_nobody_is_sent_to_resume(folder: RunFolder) -> None:
    told, record = fail(folder, WorkerError("learner rank 0 died."))
    assert str(told) == "learner rank 0 died."
    assert (record["checkpoint"], record["resume"]) == (None, None)
    told, record = fail(folder, KeyboardInterrupt())
    assert "--resume" not in str(told)
    assert "start it again" in str(told)
    assert fail(folder, RuntimeError())[1]["message"] == "RuntimeError, without a message."


def test_a_failed_start_leaves_summary_and_report(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the check to the end without Ray: what the folder holds is shown, and the failure is told first."""
    from rayrlhf.pipelines import run

    def refuse(_: object) -> None:
        raise WorkerError("Ray fell over.")

    (folder.root / "sft").mkdir()
    (folder.root / "sft" / "config.json").write_text("{}")
    config = load_config(QUICKSTART, [f"output_dir={tmp_path}", "stages=[sft]", "data.task.demonstrations=100"])
    folder.save_config(config)
    monkeypatch.setattr(run, "connect", refuse)
    with pytest.raises(WorkerError, match=r"^Ray fell over\. Go on with: rayrlhf run c\.yaml --resume$"):
        run.run_stages(config, resume=True, arguments=["run", "c.yaml", "--resume"])
    summary = json.loads((folder.root / "summary.json").read_text())
    assert (summary["stages"], summary["starts"]) == ({}, 1)
    assert summary["wall_seconds"] > 0
    assert "Ray fell over." in (folder.root / "report.html").read_text()
    assert json.loads((folder.root / "failure.json").read_text())["stage"] is None
    assert json.loads((folder.root / "account.json").read_text())["processes"] == 1
    assert folder.wandb_run_id() is not None
