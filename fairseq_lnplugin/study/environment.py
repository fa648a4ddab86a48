"""What this machine computes with: code, versions, device and threads, as JSON on standard output.

It goes beside every run, so it holds nothing that tells whose machine it was: no host name and no path.
"""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import torch

import fairseq_lnplugin
from fairseq_lnplugin import compat

PACKAGE = Path(__file__).resolve().parent.parent


def add_arguments(parser):
    """No arguments."""


def run(args):
    """Print the JSON object of :func:`environment`."""
    print(json.dumps(environment(), indent=2))


def environment():
    """``commit``, ``dirty``, the versions, ``device`` and ``threads`` as a dict; None for what cannot be found out."""
    commit, dirty = checkout(PACKAGE)
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": ", ".join(compat.fairseq_distributions()) or None,
        "fairseq_lnplugin": fairseq_lnplugin.__version__,
        "sacrebleu": version("sacrebleu"),
        "device": device(),
        "threads": torch.get_num_threads(),  # OMP_NUM_THREADS where it is set
    }


def version(distribution):
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def checkout(folder):
    """Commit of the git checkout that a package's folder belongs to, and whether a tracked file differs; or two Nones.

    A folder that git does not track, such as a copy installed in a virtual environment in a checkout, belongs to none.
    """
    if git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = git(folder, "rev-parse", "HEAD")
    changes = git(folder, "status", "--porcelain", "--untracked-files=no")
    return (None, None) if commit is None or changes is None else (commit, changes != "")


def git(folder, *command):
    """What a git command prints, stripped; None where it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def device():
    """Names of the GPUs, or the CPU's model name and whether it has AMX, the unit for bfloat16 products."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    name, flags = cpu()
    return f"{name} with AMX" if "amx_bf16" in flags else name


def cpu():
    """Model name and feature flags of the CPU, the flags where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts = {}
    for name, separator, value in (line.partition(":") for line in lines):
        if separator:
            facts.setdefault(name.strip(), value.strip())
    return facts.get("model name") or platform.processor() or platform.machine(), facts.get("flags", "").split()
