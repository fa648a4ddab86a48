"""Tests of fairseq_lnplugin/{cli,compat}.py, study/environment.py: the command line, a missing fairseq, a machine's facts."""

import builtins
import json
import platform
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fairseq_lnplugin import cli, compat
from fairseq_lnplugin.study import environment


@pytest.fixture
def stand_in(monkeypatch):
    """A command ``probe`` whose ``run`` the test sets; returns its module."""
    module = SimpleNamespace(
        __doc__="A stand-in.",
        add_arguments=lambda parser: parser.add_argument("--size", type=int),
        run=lambda args: None,
    )
    monkeypatch.setattr(cli.importlib, "import_module", lambda path: module)
    monkeypatch.setattr(cli, "COMMANDS", {"probe": ("somewhere", "a stand-in"), "other": ("elsewhere", "another")})
    return module


def raising(error):
    """A function that raises ``error``."""

    def run(args):
        raise error

    return run


# The command line


def test_help_names_every_command_and_imports_none(capsys, monkeypatch):
    """fairseq-ln --help."""
    monkeypatch.setattr(cli.importlib, "import_module", raising(AssertionError("imported")))
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and all(name in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help_of_its_own(command, capsys):
    """fairseq-ln COMMAND --help shows the module's docstring."""
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    module = sys.modules[cli.COMMANDS[command][0]]
    assert end.value.code == 0 and module.__doc__.splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["probe", "--colour"], "--colour"),
        (["probe", "--size", "x"], "--size"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2_and_says_what_is_wrong(argv, told, capsys, stand_in):
    """No traceback, and the error's line names the word."""
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2 and told in capsys.readouterr().err.splitlines()[-1]


def test_a_flag_is_not_guessed_from_its_beginning(capsys, stand_in):
    """--si is not --size."""
    with pytest.raises(SystemExit) as end:
        cli.main(["probe", "--si", "3"])
    assert end.value.code == 2


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_the_status_is_what_run_returns(returned, status, stand_in):
    """None means 0."""
    stand_in.run = lambda args: returned
    assert cli.main(["probe", "--size", "3"]) == status


def test_an_interrupt_ends_without_a_traceback(stand_in):
    """Status 130, as shells give it."""
    stand_in.run = raising(KeyboardInterrupt())
    assert cli.main(["probe"]) == 130


def test_a_reader_that_goes_away_leaves_no_traceback(repo_root):
    """fairseq-ln environment | true."""
    command = [sys.executable, "-m", "fairseq_lnplugin.cli", "environment"]
    with subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        shown = process.stderr.read()
    assert process.returncode == 141 and shown == ""


# environment


def test_environment_prints_the_contracts_names(capsys):
    """commit, dirty, versions, device, threads; as JSON."""
    assert cli.main(["environment"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == [
        *("commit", "dirty", "python", "torch", "fairseq", "fairseq_lnplugin", "sacrebleu", "device", "threads")
    ]
    assert facts["python"] == platform.python_version() and facts["device"] and facts["threads"] >= 1


def test_environment_tells_neither_host_nor_path(capsys, repo_root):
    """Run folders get published."""
    cli.main(["environment"])
    shown = capsys.readouterr().out
    assert str(repo_root) not in shown and f'"{socket.gethostname()}"' not in shown and sys.prefix not in shown


@pytest.fixture
def git_folder(tmp_path):
    """A git checkout with one commit, of a folder ``package``."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for command in (
        ["init", "--quiet"],
        ["add", "package"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    return package


def test_a_clean_checkout_has_its_commit_and_is_not_dirty(git_folder):
    """Untracked files, such as the runs themselves, do not count."""
    (git_folder.parent / "runs.tsv").write_text("")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=git_folder, capture_output=True, text=True).stdout.strip()
    assert environment.checkout(git_folder) == (head, False) and len(head) >= 40


def test_a_changed_file_makes_the_checkout_dirty(git_folder):
    """The commit alone would not reproduce the run."""
    (git_folder / "__init__.py").write_text("changed = True\n")
    assert environment.checkout(git_folder)[1] is True


def test_an_installed_copy_inside_a_checkout_has_no_commit(git_folder):
    """site-packages of a virtual environment in some other project's checkout."""
    copy = git_folder.parent / ".venv" / "package"
    copy.mkdir(parents=True)
    (copy / "__init__.py").write_text("")
    assert environment.checkout(copy) == (None, None)


def test_without_git_the_commit_is_null(git_folder, monkeypatch):
    """No git on PATH is no error."""
    monkeypatch.setenv("PATH", "")
    assert environment.checkout(git_folder) == (None, None)


def test_a_version_that_is_not_installed_is_null():
    """Never fails."""
    assert environment.version("a-distribution-nobody-has") is None


CPUINFO = "processor\t: 0\nmodel name\t: a CPU\nflags\t\t: fpu avx {flag}\n\nprocessor\t: 1\nmodel name\t: a CPU\n"


@pytest.mark.parametrize(("flag", "device"), [("amx_bf16", "a CPU with AMX"), ("amx_bf16_too", "a CPU")])
def test_a_cpu_is_told_by_its_model_and_whether_it_has_amx(flag, device, monkeypatch):
    """Of all flags that Linux lists, the one that makes bfloat16 products fast."""
    monkeypatch.setattr(environment.torch.cuda, "is_available", lambda: False)
    text = CPUINFO.format(flag=flag)
    monkeypatch.setattr(environment, "Path", lambda path: SimpleNamespace(read_text=lambda **_: text))
    assert environment.device() == device


def test_gpus_are_counted_by_name(monkeypatch):
    """Two of one kind and one of another."""
    names = ["A100", "H100", "A100"]
    monkeypatch.setattr(environment.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(environment.torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(environment.torch.cuda, "get_device_name", lambda i: names[i])
    assert environment.device() == "2 x A100, 1 x H100"


# fairseq


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("mutable default\nof a field"), "(ValueError: mutable default)"),
        (ModuleNotFoundError("No module named 'fairseq'"), "(ModuleNotFoundError: No module named 'fairseq')"),
        (AssertionError(), "(AssertionError: no message)"),
    ],
)
def test_a_fairseq_that_cannot_be_imported_ends_in_one_sentence(error, reason, monkeypatch):
    """What Python said, if anything, and what to install."""
    original = builtins.__import__

    def broken(name, *more):
        if name == "fairseq.models":
            raise error
        return original(name, *more)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(compat.FairseqMissingError) as caught:
        compat.require_fairseq()
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_the_fairseq_to_install_is_the_one_that_the_recipes_install(repo_root, monkeypatch):
    """One version in the sentence and in environment.sh."""
    monkeypatch.setitem(sys.modules, "fairseq.models", None)
    with pytest.raises(compat.FairseqMissingError) as caught:
        compat.require_fairseq()
    (pin,) = re.findall(r"fairseq-fixed==[\d.]+\d", str(caught.value))
    assert pin in (repo_root / "recipes" / "environment.sh").read_text(encoding="utf-8").split()
