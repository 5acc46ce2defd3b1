"""The batches since the last checkpoint, on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayrlhf.errors import CheckpointError, StorageError
from rayrlhf.experience.spool import ExperienceSpool, SpooledUpdate, read_batch, write_batch
from rayrlhf.types import SampleId, ScoredTrajectory, Trajectory, VersionSpan


def batch(step: int, size: int = 3) -> list[ScoredTrajectory]:
    rng = np.random.default_rng(step)
    made = []
    for k in range(size):
        trajectory = Trajectory(
            sample_id=SampleId("ppo", step, 7, k),
            prompt_ids=rng.integers(0, 99, 4).astype(np.int32),
            response_ids=rng.integers(0, 99, 6).astype(np.int32),
            rollout_logprobs=rng.standard_normal(6).astype(np.float32),
            finish="eos",
            version_spans=(VersionSpan(version=step, start=0, end=6),),
        )
        made.append(
            ScoredTrajectory(
                trajectory=trajectory,
                score=float(rng.standard_normal()),
                ref_logprobs=rng.standard_normal(6).astype(np.float32),
                prompt_text="a",
                response_text="b",
                gold=None,
            )
        )
    return made


def spooled(spool: ExperienceSpool, step: int) -> SpooledUpdate:
    write_batch(spool.batch_path(step), batch(step))
    update = SpooledUpdate(
        step=step,
        path=spool.batch_path(step),
        before=(("forget_scores", ()),) if step == 0 else (),
        calls=(("scale_kl", (2.0,)),) if step == 1 else (),
        digest=f"digest {step}",
        driver_state={"ledger": {"trained": step}},
    )
    spool.complete(update)
    return update


def test_a_batch_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    wanted = batch(3)
    write_batch(tmp_path / "folder" / "one.batch", wanted)
    found = read_batch(tmp_path / "folder" / "one.batch")
    for a, b in zip(found, wanted, strict=True):
        assert (a.score, a.trajectory.sample_id, a.trajectory.version_spans) == (
            b.score,
            b.trajectory.sample_id,
            b.trajectory.version_spans,
        )
        assert a.ref_logprobs.tobytes() == b.ref_logprobs.tobytes()
        assert a.trajectory.response_ids.tobytes() == b.trajectory.response_ids.tobytes()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["one.batch"]


def test_the_updates_that_are_done_are_found_in_order_with_what_belongs_to_them(tmp_path: Path) -> None:
    spool = ExperienceSpool(tmp_path)
    made = [spooled(spool, step) for step in range(4)]
    write_batch(spool.batch_path(4), batch(4))  # its update was not done
    assert ExperienceSpool(tmp_path).updates(0) == made
    assert ExperienceSpool(tmp_path).updates(2) == made[2:]
    assert ExperienceSpool(tmp_path).updates(5) == []
    spool.forget(before=2)
    assert ExperienceSpool(tmp_path).updates(0) == []
    assert ExperienceSpool(tmp_path).updates(2) == made[2:]
    assert spool.bytes == sum(spool.batch_path(step).stat().st_size for step in (2, 3, 4))
    spool.clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["torn", "flipped", "gone", "foreign"])
def test_a_batch_that_is_not_whole_ends_the_way_and_is_refused(tmp_path: Path, harm: str) -> None:
    spool = ExperienceSpool(tmp_path)
    made = [spooled(spool, step) for step in range(3)]
    path = spool.batch_path(1)
    content = path.read_bytes()
    if harm == "torn":
        path.write_bytes(content[:-5])
    elif harm == "flipped":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif harm == "gone":
        path.unlink()
    else:
        path.write_bytes(b"something else that is long enough to be read")
    assert spool.updates(0) == made[:1]
    with pytest.raises(CheckpointError, match=r"update_000001\.batch (is torn|cannot be read)"):
        read_batch(path)


def test_what_is_said_of_an_update_that_is_torn_ends_the_way(tmp_path: Path) -> None:
    spool = ExperienceSpool(tmp_path)
    made = [spooled(spool, step) for step in range(3)]
    (tmp_path / "update_000002.json").write_text('{"calls": [')
    assert spool.updates(0) == made[:2]


def test_a_disk_that_takes_nothing_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"x\.batch cannot be written: .*checkpoint\.spool=false"):
        write_batch(tmp_path / "file" / "x.batch", batch(0))
    spool = ExperienceSpool(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be written"):
        spool.complete(replace(SpooledUpdate(step=0, path=tmp_path), digest="d"))
