"""What the tests of the recipes share: copies of the tree in which the real scripts run, and readers of tables and commands.

A small made-up corpus takes the place of the corpus scripts, and stand-ins for fairseq-preprocess, fairseq-train,
fairseq-generate and fairseq-ln are first on PATH, which record their arguments.
"""

import csv
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys

from conftest import ROOT

CORPUS_SCRIPT = '''
"""Stand-in for a corpus script: 60 pairs in the layout of recipes/corpora/parallel_text.py."""
import json, os, sys
from pathlib import Path

log = os.environ["STAND_IN_LOG"]
with open(log, "a") as file:
    print(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]]), file=file)
if Path(sys.argv[0]).name == os.environ.get("NO_CORPUS"):
    sys.exit(3)
out = Path(sys.argv[sys.argv.index("--out") + 1])
(out / "bpe").mkdir(parents=True, exist_ok=True)
for split, count in (("train", 500), ("valid", 120), ("test", 130), ("valid500", 120)):
    for lang, word in (("de", "gr\\u00fc\\u00df"), ("en", "hello")):
        text = "".join(f"{word} " * (1 + n % 9) + f"w{n}\\n" for n in range(count))
        for folder in (out, out / "bpe"):
            (folder / f"{split}.{lang}").write_text(text, encoding="utf-8")
script = Path(sys.argv[0]).name
source, target = ("en", "de") if script == "wmt14.py" else ("de", "en")
(out / "corpus.json").write_text(json.dumps({
    "name": "grammar" if script == "grammar.py" else "stand-in", "source_lang": source, "target_lang": target,
    "lowercase": script == "iwslt14.py",
    "note": "" if script == "own.py" else "made up",
    "pairs": {"train": 500, "valid": 120, "test": 130}}))
'''

#: How every stand-in for a program begins: it records its arguments.
RECORDER = """#!{python}
import json, os, signal, sys, time, zipfile
from pathlib import Path

name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
with open(os.environ["STAND_IN_LOG"], "a", encoding="utf-8") as file:
    print(json.dumps([name, *arguments]), file=file)


def flag(wanted):
    return arguments[arguments.index(wanted) + 1]


def checkpoint(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", os.urandom(5000))


"""

STAND_IN = """
# TRAIN_MODE says how a training ends: well (default), diverges (also: scale, workers), fails, killed, or last (well, after three
# others).
DIVERGENCES = {{
    "diverges": "Traceback (most recent call last):\\nFloatingPointError: gradients are Nan/Inf",
    "scale": "FloatingPointError: Minimum loss scale reached (0.0001). Your loss is probably exploding.",
    "workers": "[rank1]: FloatingPointError: Fatal error: gradients are inconsistent between workers. Try\\n"
    "[rank1]: grad_norm across the workers:\\n[rank1]: rank   0 = nan\\n[rank1]: rank   1 = nan\\n" + "launcher\\n" * 60,
    "inconsistent": "FloatingPointError: Fatal error: gradients are inconsistent between workers.\\nrank   0 = 1.0\\n"
    "rank   1 = 2.0",
}}
if name == "fairseq-preprocess":
    out = Path(flag("--destdir"))
    out.mkdir(parents=True, exist_ok=True)
    for lang in ("de", "en"):
        (out / f"dict.{{lang}}.txt").write_text(f"word.{{lang}} 1\\n")
elif name == "fairseq-train":
    mode = os.environ.get("TRAIN_MODE", "well")
    if os.environ.get("TRAIN_MODE_ONLY", "") not in flag("--save-dir"):
        mode = "well"
    save = Path(flag("--save-dir"))
    (save.parent / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    if (save / "checkpoint_last.pt").exists():
        print("resumed", flush=True)
    while mode == "last" and len(list(save.parents[2].glob("*/*/trained"))) < 3:
        time.sleep(0.05)
    for epoch in range(1, int(flag("--max-epoch")) + 1):
        print('x | INFO | train_inner | {{"epoch": %d, "update": %s, "loss": "9.5", "num_updates": "%d", "lr": "0.0005"}}'
              % (epoch, epoch - 0.5, 10 * epoch - 5), flush=True)
        if mode in DIVERGENCES:
            print(DIVERGENCES[mode])
            sys.exit(1)
        if mode == "fails" and epoch == 2:
            print("RuntimeError: no space left on device")
            sys.exit(1)
        print('x | INFO | valid | {{"epoch": %d, "valid_loss": "%s", "valid_num_updates": "%d"}}'
              % (epoch, 5 + (epoch - 1) ** 2, 10 * epoch), flush=True)
        checkpoint(save / f"checkpoint{{epoch}}.pt")
        checkpoint(save / "checkpoint_last.pt")
        if mode == "killed":
            (save / "checkpoint_last.pt").write_bytes((save / "checkpoint_last.pt").read_bytes()[:2000])
            (save / "checkpoint2.pt.tmp").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
elif name == "fairseq-generate":
    print("H-0\\t0.0\\tgr\\u00fc\\u00df dich")
elif name == "fairseq-ln":
    if arguments[0] == "environment":
        print("{{}}")
    elif arguments[0] == "score":
        time.sleep(int(os.environ.get("SLOW_SCORE", "0")))
        out = Path(flag("--out"))
        rows = out.read_text() if out.exists() else "epoch\\tupdates\\tsubset\\n"
        out.write_text(rows + "\\t".join((flag("--epoch"), flag("--updates"), flag("--subset"))) + "\\n")
    elif arguments[0] == "gradients":
        out = Path(flag("--out"))
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "measurements.jsonl", "a") as file:
            file.write("{{}}\\n" if os.environ.get("MEASURED") != "yes" else "")
    elif arguments[0] == "report":
        Path(arguments[1], "figures").mkdir(exist_ok=True)
        for report in ("RESULTS.md", "RESULTS.html"):
            Path(arguments[1], report).write_text("results")
"""

PYTHON = """#!/bin/sh
case "$2" in *corpus_bleu*) echo "${{CHECK:-0}}"; [ "${{CHECK:-0}}" -ge 0 ] 2>/dev/null; exit ;; esac
exec {python} "$@"
"""


class Tree:
    """A copy of the recipes in a folder with a space in its name, and the stand-ins' log."""

    def __init__(self, folder):
        self.root = folder / "a tree"
        self.calls_log = folder / "calls.jsonl"
        bin_folder = folder / "bin"
        corpora = self.root / "recipes" / "corpora"
        bin_folder.mkdir()
        corpora.mkdir(parents=True)
        for path in (ROOT / "recipes").iterdir():
            if path.is_file():
                shutil.copy(path, self.root / "recipes")
        for name in ("iwslt14", "wmt14", "own", "libreoffice_help", "grammar"):
            (corpora / f"{name}.py").write_text(CORPUS_SCRIPT, encoding="utf-8")
        (self.root / "fairseq_lnplugin").symlink_to(ROOT / "fairseq_lnplugin")
        for name in ("fairseq-preprocess", "fairseq-train", "fairseq-generate", "fairseq-ln"):
            path = bin_folder / name
            path.write_text((RECORDER + STAND_IN).format(python=sys.executable), encoding="utf-8")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        # the real Python, but the check of the environment, which imports torch, ends as CHECK says: how many GPUs there are
        (bin_folder / "python").write_text(PYTHON.format(python=shlex.quote(sys.executable)))
        (bin_folder / "python").chmod(0o755)
        self.environment = {
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "STAND_IN_LOG": str(self.calls_log),
            "IWSLT14": str(folder),
            "WMT14": str(folder),
            "OMP_NUM_THREADS": "1",
            "PYTHON": "none",  # a module that is missing ends the recipe in a sentence, and installs nothing
        }

    def run(self, recipe, *arguments, cwd=None, **settings):
        """Run a recipe, from the root or another folder; a finished process with its stdout and stderr."""
        return subprocess.run(
            ["bash", str(self.root / "recipes" / f"{recipe}.sh") if cwd else f"recipes/{recipe}.sh", *arguments],
            cwd=cwd or self.root,
            env=self.environment | settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )

    def calls(self, program):
        """Arguments of every call of a program so far."""
        if not self.calls_log.exists():
            return []
        lines = [json.loads(line) for line in self.calls_log.read_text(encoding="utf-8").splitlines()]
        return [line[1:] for line in lines if line[0] == program]

    def only(self, recipe="iwslt14", run="iwslt14-pre-adam-lr5e-4-step", *arguments, **settings):
        """One run of the smoke preset."""
        return self.run(recipe, "--only", run, *arguments, **{"PRESET": "smoke"} | settings)

    def folder(self, run="iwslt14-pre-adam-lr5e-4-step", study="iwslt14-smoke", seed=1):
        """A run folder."""
        return self.root / "runs" / study / run / f"seed{seed}"


def table(name):
    """Rows of a table in recipes/ as dictionaries; '-' is empty."""
    lines = [line for line in (ROOT / "recipes" / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [{key: "" if value == "-" else value for key, value in row.items()} for row in csv.DictReader(lines, delimiter="\t")]


def flags(command):
    """The flags of a command line given as text or as a list, as a dictionary; positional arguments under ''."""
    words = shlex.split(command) if isinstance(command, str) else command
    result, name = {"": []}, ""
    for word in words:
        if word.startswith("--"):
            name = word
            result[name] = ""
        elif name:
            result[name], name = word, ""
        else:
            result[""].append(word)
    return result
