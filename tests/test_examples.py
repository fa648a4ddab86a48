"""Tests of examples/: each runs as its docstring says, from another folder, and prints what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def rows_of(repo_root, tmp_path):
    """The rows of the table that an example prints, as lists of words; ``rows_of(name)`` runs it."""

    def run(name):
        command = [sys.executable, repo_root / "examples" / f"{name}.py"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        return [line.split() for line in done.stdout.splitlines()]

    return run


def test_post_lns_gradients_grow_towards_the_output_and_pre_lns_do_not(rows_of):
    """01: the last layer's, too, is well above Pre-LN's."""
    layers = [[float(cell) for cell in row] for row in rows_of("01_ln_position")[2:]]
    assert [row[0] for row in layers] == [1, 2, 3, 4, 5, 6]
    (_, first_post, first_pre), *_, (_, last_post, last_pre) = layers
    assert last_post > 1.5 * last_pre and last_post > first_post and last_pre <= first_pre


def test_the_schedules_are_those_of_the_paper_at_the_updates_that_tell_them_apart(rows_of):
    """02: the first update, the end of the warm-up, a tenth from epoch 8 on."""
    rates = {row[0]: row[2:] for row in rows_of("02_lr_schedule")[1:]}
    assert rates["1"] == ["1.25e-07", "5.00e-04", "5.00e-04", "5.00e-04"]
    assert rates["4000"][0] == "5.00e-04"
    assert (rates["7700"][-1], rates["7701"][-1]) == ("5.00e-04", "5.00e-05")


def test_w1_and_w2_of_each_layer_have_a_norm_at_updates_1_10_and_20(rows_of):
    """03: what a training with --grad-norm-interval 10 wrote."""
    rows = rows_of("03_grad_norm")[1:]
    places = {tuple(row[:3]) for row in rows}
    assert places == {(u, stack, layer) for u in ("1", "10", "20") for stack in ("encoder", "decoder") for layer in "12"}
    assert all(len(row) == 5 and float(cell) > 0 for row in rows for cell in row[3:])


def test_every_example_is_run_here(repo_root):
    """A new example without a test fails."""
    run_here = re.findall(r'rows_of\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8"))
    assert sorted(run_here) == sorted(path.stem for path in (repo_root / "examples").glob("*.py"))
