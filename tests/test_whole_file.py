"""Tests of fairseq_lnplugin/whole_file.py: files that are written whole or not at all."""

import pytest

from fairseq_lnplugin.whole_file import replacing


@pytest.fixture
def path(tmp_path):
    """A file with old text."""
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def test_the_old_file_stays_until_the_new_one_is_whole(path):
    """Whoever reads it meanwhile reads the old text."""
    with replacing(path) as new:
        new.write_text("half of the new")
        assert path.read_text() == "old"


def test_the_new_file_takes_the_place_of_the_old_one_and_leaves_nothing_beside_it(path):
    """At the end of the block."""
    with replacing(path) as new:
        new.write_text("new")
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_a_file_that_was_not_there_is_made(tmp_path):
    """There need be no old one."""
    with replacing(tmp_path / "first.txt") as new:
        new.write_text("new")
    assert (tmp_path / "first.txt").read_text() == "new"


def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside_it(path):
    """Its error goes on."""
    with pytest.raises(ZeroDivisionError), replacing(path) as new:
        new.write_text("half of the new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_new_file_that_cannot_take_its_place_is_deleted(tmp_path):
    """A folder stands there."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "folder") as new:
        new.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_two_processes_write_to_two_files(path, monkeypatch):
    """The one must not take the other's half for its whole."""
    names = []
    for process in (1, 2):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        with replacing(path) as new:
            names.append(new)
            new.touch()
    assert len(set(names)) == 2
