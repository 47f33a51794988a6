"""Laws of the run folder's lock and log."""

from __future__ import annotations

import os

import pytest

from scanbridge.errors import UserError
from scanbridge.runs.lock import locked
from scanbridge.runs.log import Log, read_log


def test_a_locked_folder_is_refused_with_the_holder_and_free_afterwards(tmp_path):
    with locked(tmp_path / "run"), pytest.raises(UserError, match=f"pid {os.getpid()}"), locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "run"):
        pass


def test_a_lock_left_by_a_process_that_died_holds_nobody_up(tmp_path):
    (tmp_path / "lock").write_text("999999")
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_two_folders_are_locked_apart(tmp_path):
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        assert (tmp_path / "b" / "lock").is_file()


def test_a_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"), locked(tmp_path / "file" / "run"):
        pass


def written(folder, *images: int, start: int = 0, **numbers: float) -> list[int]:
    log = Log(folder, start)
    for n in images:
        log.write(n, loss=float(n), **numbers)
    log.close()
    return [line["images"] for line in read_log(folder / "log.jsonl")]


def test_a_resumed_log_drops_what_lies_past_the_checkpoint(tmp_path):
    assert written(tmp_path, 1, 2, 3) == [1, 2, 3]
    assert written(tmp_path, 3, 4, start=2) == [1, 2, 3, 4]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    written(tmp_path, 1, 2)
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"images": 3, "lo')
    assert [line["images"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2]
    assert written(tmp_path, 3, start=2) == [1, 2, 3]


def test_a_log_that_is_off_writes_nothing(tmp_path):
    log = Log(tmp_path, 0, enabled=False)
    log.write(1, loss=1.0)
    log.flush()
    log.close()
    assert not list(tmp_path.iterdir())


def test_events_for_tensorboard_lie_beside_the_log(tmp_path):
    written(tmp_path, 1)
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))
