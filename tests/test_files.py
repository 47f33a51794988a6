"""Laws of writing: a file is there whole, or as it was before, and what fails names it."""

from __future__ import annotations

import hashlib

import pytest

from scanbridge.errors import UserError
from scanbridge.files import atomic, read_json, sha256, write_bytes, write_json, write_text


def test_what_is_written_is_read_and_folders_are_made(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"mean": 0.1, "name": "Müller"})
    assert read_json(tmp_path / "a" / "b.json") == {"mean": 0.1, "name": "Müller"}
    write_text(tmp_path / "c.txt", "ä\n")
    assert (tmp_path / "c.txt").read_bytes() == "ä\n".encode()
    assert sha256(tmp_path / "c.txt") == hashlib.sha256("ä\n".encode()).hexdigest()


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "before")

    def fails():
        with atomic(tmp_path / "a.txt") as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))
    assert (tmp_path / "a.txt").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_the_file_system_refuses_is_said_with_the_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "a.txt"):
        with pytest.raises(UserError, match=f"{path} cannot be written"):
            write_bytes(path, b"x")
    for path in (tmp_path / "folder", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"{path} cannot be read"):
            sha256(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("text", [None, "{", "\udcff"])
def test_json_that_is_none_is_said_with_the_file(text, tmp_path):
    if text is not None:
        (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"a\.json: .*restore it"):
        read_json(tmp_path / "a.json", "restore it")
