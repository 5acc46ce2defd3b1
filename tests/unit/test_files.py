"""Writing whole files, on disks that take them and on one that does not."""

import os
from pathlib import Path

import pytest

from rayrlhf.errors import StorageError
from rayrlhf.files import storing, write_whole
from rayrlhf.telemetry.account import RunAccount
from rayrlhf.telemetry.sinks import JsonlSink


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x.json"
    write_whole(path, "one")
    write_whole(path, b"two")
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["x.json"]


def test_a_place_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/x\.json cannot be written: .*; make its folder writable\."):
        write_whole(tmp_path / "file" / "x.json", "one")


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught, storing(tmp_path / "x.json"):
        raise OSError(28, "No space left on device")
    assert str(caught.value) == f"{tmp_path}/x.json cannot be written: No space left on device; make room on its disk."


def test_rows_that_a_full_disk_does_not_take_are_an_error_and_closing_is_none() -> None:
    sink = JsonlSink(Path("/dev/full"))
    with pytest.raises(StorageError, match="/dev/full cannot be written: No space left on device; make room"):
        sink.write([{"step": 1}])
    sink.close()


def test_an_account_that_cannot_be_written_hides_no_failure(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    def fail() -> None:
        with RunAccount(folder, peak_bytes=lambda: 0):
            os.rename(folder, tmp_path / "away")
            folder.write_text("in its place")
            raise ValueError("the failure")

    with pytest.raises(ValueError, match="the failure"):
        fail()
