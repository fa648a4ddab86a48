"""recipes/checkpoints.py: what a killed training goes on from."""

import os
import sys
import zipfile

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "recipes"))

import checkpoints  # noqa: E402  the recipes are no package


def whole(path):
    """Write a checkpoint as torch does: a zip file, its members stored as they are."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", os.urandom(500))
    return path.read_bytes()


def cut(path):
    """Write the first half of a checkpoint."""
    path.write_bytes(whole(path)[:300])


def names(folder):
    """The files of a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_checkpoint_last_is_left_as_it_is_and_half_written_files_go(tmp_path):
    """Even beside a newer one that is broken: fairseq reads checkpoint_last.pt alone."""
    last = whole(tmp_path / "checkpoint_last.pt")
    cut(tmp_path / "checkpoint2.pt")
    cut(tmp_path / "checkpoint_best.pt.tmp")
    cut(tmp_path / "checkpoint_last.pt.new")
    assert checkpoints.repair(tmp_path) == ""
    assert names(tmp_path) == ["checkpoint2.pt", "checkpoint_last.pt"]
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == last


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("checkpoint9.pt", "checkpoint10.pt"),
        ("checkpoint_3_1200.pt", "checkpoint3.pt"),
        ("checkpoint3.pt", "checkpoint_4_1300.pt"),
        ("checkpoint_1_900.pt", "checkpoint_1_1000.pt"),
    ],
)
def test_the_newest_checkpoint_takes_the_place_of_one_that_is_cut(older, newer, tmp_path):
    """By epoch, then update, as numbers; an epoch's end comes after all of its updates."""
    whole(tmp_path / older)
    expected = whole(tmp_path / newer)
    cut(tmp_path / "checkpoint_last.pt")
    assert checkpoints.repair(tmp_path) == f"checkpoint_last.pt cannot be read; going on from {newer}"
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == expected == (tmp_path / newer).read_bytes()


def test_newer_checkpoints_that_cannot_be_read_go(tmp_path):
    """Of epochs 1 to 3 the first is whole, and checkpoint_last.pt is not there."""
    expected = whole(tmp_path / "checkpoint1.pt")
    cut(tmp_path / "checkpoint2.pt")
    (tmp_path / "checkpoint3.pt").touch()
    assert checkpoints.repair(tmp_path) == "checkpoint_last.pt is missing; going on from checkpoint1.pt"
    assert names(tmp_path) == ["checkpoint1.pt", "checkpoint_last.pt"]
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == expected


def test_a_changed_byte_makes_a_checkpoint_unreadable(tmp_path):
    """The zip file's checksum tells."""
    content = whole(tmp_path / "checkpoint1.pt")
    assert checkpoints.readable(tmp_path / "checkpoint1.pt")
    (tmp_path / "checkpoint1.pt").write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    assert not checkpoints.readable(tmp_path / "checkpoint1.pt")


def test_without_a_checkpoint_that_can_be_read_all_go(tmp_path):
    """The training starts again, and a sentence says so."""
    cut(tmp_path / "checkpoint1.pt")
    cut(tmp_path / "checkpoint_last.pt")
    assert checkpoints.repair(tmp_path) == "no checkpoint can be read; starting again from the beginning"
    assert names(tmp_path) == []


def test_of_a_folder_without_checkpoints_there_is_nothing_to_say(tmp_path):
    """A first start, or a folder that is not there."""
    assert checkpoints.repair(tmp_path) == checkpoints.repair(tmp_path / "nowhere") == ""
