"""What several test files share: a tiny German-English corpus, and fairseq-train as a user starts it.

==================  ================================================================================================
``repo_root``       the root of this repository (pathlib.Path)
``text_corpus``     folder with ``{train,valid,test}.{de,en}``, 300 / 40 / 40 pairs, tokenized, no BPE needed
``data_bin``        the same, binarized by fairseq-preprocess with one dictionary for both languages
``fairseq_train``   ``fairseq_train(args, workers=1)`` runs the real command with our ``--user-dir`` and returns
                    its exit status and log; see :func:`run_fairseq_train`
``operators``       runs a test twice: with the compiled kernels, and with torch's operators in their place
==================  ================================================================================================

All but the last are made once a session, in temporary folders. English is German word by word, through a one-to-one lexicon, so
that a tiny model learns it in a few hundred updates.
"""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

# Before anything imports torch: models this small are slower on several threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout is tested, not an installed copy

# What fails in these tells what it compared, as in a test file.
pytest.register_assert_rewrite("corpus_scripts", "reference", "sentences")

SPLITS = {"train": 300, "valid": 40, "test": 40}


@pytest.fixture(scope="session")
def repo_root():
    """The root of this repository."""
    return ROOT


@pytest.fixture(scope="session")
def text_corpus(tmp_path_factory):
    """Folder with ``{train,valid,test}.{de,en}``."""
    folder = tmp_path_factory.mktemp("text")
    generator = random.Random(1)
    for split, pairs in SPLITS.items():
        sentences = [[generator.randrange(40) for _ in range(generator.randint(3, 10))] for _ in range(pairs)]
        for lang in ("de", "en"):
            lines = (" ".join(f"{lang}{word}" for word in sentence) + "\n" for sentence in sentences)
            (folder / f"{split}.{lang}").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data_bin(text_corpus, tmp_path_factory):
    """The corpus as fairseq-train takes it."""
    prefixes = {split: text_corpus / split for split in SPLITS}
    return binarize(tmp_path_factory.mktemp("data-bin"), "--joined-dictionary", **prefixes)


@pytest.fixture(scope="session")
def fairseq_train():
    """The function :func:`run_fairseq_train`."""
    return run_fairseq_train


@pytest.fixture(params=["kernels", "torch operators"])
def operators(request, monkeypatch):
    """Nothing; the test runs once with each."""
    from fairseq_lnplugin import fused  # not above: it imports torch and fairseq, which many test files do without

    if request.param == "torch operators":
        monkeypatch.setattr(fused, "kernels", None)


def binarize(folder, *flags, **prefixes):
    """``fairseq-preprocess`` German and English text into a folder, which is returned.

    ``prefixes``: the text of a split, ``train``, ``valid`` or ``test``, without the ending of the language.
    """
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--source-lang", "de", "--target-lang", "en"]
    command += ["--destdir", folder, *flags]
    for split, prefix in prefixes.items():
        command += [f"--{split}pref", prefix]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def run_fairseq_train(args, workers=1):
    """Run ``fairseq-train --user-dir OURS ARGS`` on one thread and wait for it.

    ``args``: what follows on the command line, of any types. ``workers``: how many processes train together over gloo;
    on the CPU that works only with one process started for each, told its rank.

    Returns:
        SimpleNamespace: ``rc``, the exit status (of the first worker that failed), and ``log``, worker 0's output.

    """
    command = [sys.executable, "-m", "fairseq_cli.train", "--user-dir", ROOT / "fairseq_lnplugin", *args]
    if workers > 1:
        command += ["--distributed-world-size", workers, "--distributed-no-spawn", "--distributed-backend", "gloo"]
        command += ["--distributed-init-method", f"tcp://127.0.0.1:{free_port()}", "--ddp-backend", "legacy_ddp"]
    processes = [
        subprocess.Popen(
            [str(part) for part in command] + (["--distributed-rank", str(rank)] if workers > 1 else []),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(workers)
    ]
    try:
        log, _ = processes[0].communicate(timeout=300)
        statuses = [process.wait(timeout=20) for process in processes]
    finally:
        for process in processes:  # who is still there waits for one that died
            process.kill()
            process.wait()
    return SimpleNamespace(rc=next((status for status in statuses if status), 0), log=log)


def free_port():
    """A TCP port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
