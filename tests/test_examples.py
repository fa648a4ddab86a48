"""Tests of examples/: each runs as its docstring says, from another folder, and prints what it promises."""

import subprocess
import sys

import pytest

EXAMPLES = ["01_ln_position", "02_lr_schedule", "03_grad_norm"]


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request, repo_root, tmp_path_factory):
    """(name, rows of the printed table as lists of words)."""
    script = repo_root / "examples" / f"{request.param}.py"
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path_factory.mktemp("elsewhere"), timeout=120
    )
    assert run.returncode == 0, run.stderr
    return request.param, [line.split() for line in run.stdout.splitlines()]


def test_an_example_prints_what_its_docstring_promises(example):
    """01: Post-LN's norms grow, Pre-LN's do not; 02: rates up to the decay; 03: W1 and W2 at updates 1, 10 and 20."""
    name, rows = example
    if name == "01_ln_position":
        layers = [[float(cell) for cell in row] for row in rows[2:]]
        assert [row[0] for row in layers] == [1, 2, 3, 4, 5, 6]
        assert layers[-1][1] > 1.5 * layers[-1][2]  # the last layer: Post-LN far above Pre-LN
        assert layers[-1][1] > layers[0][1]  # Post-LN grows towards the output
        assert layers[-1][2] <= layers[0][2]  # Pre-LN does not
    elif name == "02_lr_schedule":
        rates = {row[0]: row[2:] for row in rows[1:]}
        assert rates["1"] == ["1.25e-07", "5.00e-04", "5.00e-04", "5.00e-04"]
        assert rates["4000"][0] == "5.00e-04"  # the end of the warm-up
        assert (rates["7700"][-1], rates["7701"][-1]) == ("5.00e-04", "5.00e-05")  # a tenth from epoch 8 on
    else:
        places = {tuple(row[:3]) for row in rows[1:]}
        assert places == {(u, stack, layer) for u in ("1", "10", "20") for stack in ("encoder", "decoder") for layer in "12"}
        assert all(float(cell) > 0 for row in rows[1:] for cell in row[3:])


def test_every_example_is_run_here(repo_root):
    """A new example without a test fails."""
    assert sorted(path.stem for path in (repo_root / "examples").glob("*.py")) == EXAMPLES
