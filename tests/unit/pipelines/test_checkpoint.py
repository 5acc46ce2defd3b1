import json
from pathlib import Path

import pytest

from rayrlhf.errors import CheckpointError, StorageError
from rayrlhf.pipelines.checkpoint import CheckpointStore


def save(store: CheckpointStore, step: int) -> None:
    with store.write(step, {"ledger": {"trained": step}}) as directory:
        (directory / "learner.pt").write_bytes(b"x" * 100)
        (directory / "more").mkdir()
        (directory / "more" / "critic.pt").write_bytes(b"y" * 50)


def test_the_newest_complete_checkpoint_is_found_with_its_state(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    assert store.newest() == (None, [])
    for step in (3, 20, 100):
        save(store, step)
    newest, skipped = store.newest()
    assert newest is not None
    assert (newest.step, newest.driver_state, skipped) == (100, {"ledger": {"trained": 100}}, [])
    assert (newest.directory / "COMPLETE").exists()


@pytest.mark.parametrize("damage", ["marker", "missing", "short", "torn marker", "driver"])
def test_a_half_written_checkpoint_falls_back_to_the_complete_one(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    save(store, 10)
    save(store, 20)
    broken = tmp_path / "step_000020"
    match damage:
        case "marker":
            (broken / "COMPLETE").unlink()
        case "missing":
            (broken / "more" / "critic.pt").unlink()
        case "short":
            (broken / "learner.pt").write_bytes(b"x" * 99)
        case "torn marker":
            (broken / "COMPLETE").write_text('{"learner.pt": 1')
        case "driver":
            (broken / "driver.json").unlink()
    newest, skipped = store.newest()
    assert newest is not None
    assert newest.step == 10
    assert skipped == ["step_000020"]


def test_a_failure_while_writing_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    save(store, 10)
    with (
        pytest.raises(
            StorageError, match=r"step_000020 cannot be written: No space left on device; make room on its disk"
        ),
        store.write(20, {}) as directory,
    ):
        (directory / "learner.pt").write_bytes(b"x")
        raise OSError(28, "No space left on device")
    newest, skipped = store.newest()
    assert newest is not None
    assert (newest.step, skipped) == (10, [])
    save(store, 20)
    assert store.newest()[0].step == 20  # type: ignore[union-attr]


def test_files_that_never_arrived_are_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="storage that every node shares"),
        CheckpointStore(tmp_path, keep=1).write(1, {}),
    ):
        pass


def test_old_checkpoints_go_and_incomplete_ones_do_not_count(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        save(store, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000003", "step_000004"]
    (tmp_path / "step_000004" / "COMPLETE").unlink()
    save(store, 5)
    newest, _ = store.newest()
    assert newest is not None
    assert newest.step == 5
    assert json.loads((tmp_path / "step_000003" / "driver.json").read_text())["step"] == 3
