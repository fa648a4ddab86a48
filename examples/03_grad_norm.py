"""Train with the gradient-norm hook and read what it wrote.

    python examples/03_grad_norm.py

Makes a few hundred sentence pairs, runs fairseq-preprocess and then fairseq-train with ``--grad-norm-interval 10`` for 20
updates, all in a temporary folder, and prints W1's and W2's norms (fc1 and fc2) of each layer from ``grad_norm.tsv``: the
gradient of the loss per target token over the whole update, before clipping. Takes seconds on a CPU.
"""

import csv
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write_pairs(folder):
    """``{train,valid}.{de,en}``: made-up words, the English ones in the reverse order of the German ones."""
    generator = random.Random(1)
    for split, pairs in (("train", 300), ("valid", 30)):
        sentences = [[generator.randrange(50) for _ in range(generator.randint(4, 12))] for _ in range(pairs)]
        for lang, ordered in (("de", sentences), ("en", [sentence[::-1] for sentence in sentences])):
            lines = (" ".join(f"{lang}{word}" for word in sentence) + "\n" for sentence in ordered)
            (folder / f"{split}.{lang}").write_text("".join(lines), encoding="utf-8")


def run(program, *arguments):
    """Run ``fairseq-preprocess`` or ``fairseq-train`` of this Python; its output only when it fails."""
    command = [sys.executable, "-m", f"fairseq_cli.{program}", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\nfairseq-{program} failed; its output stands above")


def main():
    """Train, then print one row an update, stack and layer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder)
        data, checkpoints = folder / "bin", folder / "checkpoints"
        run("preprocess", "--source-lang", "de", "--target-lang", "en", "--trainpref", folder / "train",
            "--validpref", folder / "valid", "--destdir", data)  # fmt: skip
        run("train", data, "--user-dir", ROOT / "fairseq_lnplugin", "--arch", "transformer_ln_study_tiny",
            "--ln-position", "pre", "--optimizer", "adam", "--lr", "1e-3", "--lr-scheduler", "no_warmup",
            "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--max-tokens", "1000",
            "--max-update", "20", "--grad-norm-interval", "10", "--save-dir", checkpoints)  # fmt: skip
        norms = {}
        with open(checkpoints / "grad_norm.tsv", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                if row["matrix"] in ("fc1.weight", "fc2.weight"):
                    place = int(row["update"]), row["stack"], row["layer"]
                    norms.setdefault(place, {})[row["matrix"]] = float(row["norm"])
        print(f"{'update':>6}  {'stack':7}  {'layer':>5}  {'W1':>8}  {'W2':>8}")
        for (update, stack, layer), of in norms.items():
            print(f"{update:>6}  {stack:7}  {layer:>5}  {of['fc1.weight']:>8.4f}  {of['fc2.weight']:>8.4f}")


if __name__ == "__main__":
    main()
