"""Run folders as the recipes leave them, with logs as fairseq writes them, for the tests of study/."""

import json

BLEU = "nrefs:1|case:lc|eff:no|tok:none|smooth:exp|version:2.6.0"
SACREBLEU = "nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|version:2.6.0"
SCORES = "epoch updates subset lines bleu bleu_signature sacrebleu sacrebleu_signature checkpoint".split()
POST, PRE = "iwslt14-post-adam-lr5e-4-warmup4000", "iwslt14-pre-adam-lr5e-4-step"

SETTINGS = {
    **{"study": "iwslt14", "run": POST, "figure": "2,4", "data": "iwslt14-de-en", "pairs": "40653", "preset": "cpu"},
    **{"arch": "transformer_ln_study_small", "ln_position": "post", "weight_init": "xavier_uniform"},
    **{"compute_dtype": "bfloat16", "optimizer": "adam", "lr": "5e-4", "schedule": "warmup_inverse_sqrt"},
    **{"warmup_updates": "1000", "hold_epochs": "", "decay": "", "decay_factor": ""},
    **{"dropout": "0.1", "label_smoothing": "0.1", "max_tokens": "4096", "update_freq": "1", "max_epoch": "3"},
    **{"max_update": "", "seed": "1", "paper_bleu": "about 34", "note": "the baseline"},
}
PRE_SETTINGS = {
    **{"run": PRE, "figure": "4", "ln_position": "pre", "schedule": "no_warmup", "warmup_updates": ""},
    **{"hold_epochs": "2", "decay": "step", "decay_factor": "0.1", "note": ""},
}
ENVIRONMENT = {
    **{"commit": "0123abc", "dirty": False, "python": "3.11.2", "torch": "2.5.1", "fairseq": "fairseq-fixed 0.12.3.1"},
    **{"fairseq_lnplugin": "0.1.0", "sacrebleu": "2.6.0", "device": "a CPU with AMX", "threads": 2},
}
#: Validation loss, nll loss, BLEU on 500 validation sentences, and on the test set; the second epoch is the best.
EPOCHS = [(6.5, 5.5, 10.0, None), (5.25, 4.0, 30.5, 29.75), (5.5, 4.5, 29.0, 28.5)]


def inner(update, lr="0.0005", loss="8.5", gnorm="1.2"):
    """A ``train_inner`` line as fairseq writes it: numbers are texts; ``update`` is the epochs so far, 100 updates each."""
    values = {"epoch": 1, "update": update / 100, "loss": loss, "num_updates": str(update), "lr": lr, "gnorm": gnorm}
    return f"2026-01-01 00:00:00 | INFO | train_inner | {json.dumps(values)}\n"


def valid(epoch, updates, loss="6.5", nll_loss="5.5"):
    """A ``valid`` line."""
    values = {"epoch": epoch, "valid_loss": str(loss), "valid_nll_loss": str(nll_loss)}
    values["valid_num_updates"] = str(updates)
    return f"2026-01-01 00:00:00 | INFO | valid | {json.dumps(values)}\n"


def train(epoch, updates, loss="7.5"):
    """A ``train`` line, which follows the ``valid`` line of its epoch."""
    values = {"epoch": epoch, "train_loss": loss, "train_num_updates": str(updates), "train_wall": str(10 * epoch)}
    return f"2026-01-01 00:00:00 | INFO | train | {json.dumps(values)}\n"


def write_scores(folder, rows):
    """scores.tsv of ``(epoch, subset, lines, bleu)``."""
    lines = [SCORES]
    for epoch, subset, count, bleu in rows:
        row = [epoch, 100 * epoch, subset, count, bleu, BLEU, bleu - 1, SACREBLEU, f"checkpoint{epoch}.pt"]
        lines.append([str(cell) for cell in row])
    (folder / "scores.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))


def write_translations(folder, epoch, hypotheses, targets):
    """fairseq-generate's output on the test set, in two shards."""
    (folder / "decode").mkdir(exist_ok=True)
    lines = [
        f"S-{i}\tquelle\nT-{i}\t{target}\nH-{i}\t-0.5\t{text}\nD-{i}\t-0.5\t{text}\nP-{i}\t-0.5 -0.5\n"
        for i, (text, target) in enumerate(zip(hypotheses, targets, strict=True))
    ]
    for shard in (0, 1):
        (folder / "decode" / f"epoch{epoch}.test.shard{shard}.txt").write_text("".join(lines[shard::2]))


def write_run(root, epochs=EPOCHS, log=None, done=True, diverged=None, environment=(), lines=6750, **settings):
    """A run folder as the recipes leave it: 100 updates an epoch, two layers a stack; returns its path.

    ``lines``: of the test set.
    """
    settings = {**SETTINGS, **{name: str(value) for name, value in settings.items()}}
    folder = root / settings["run"] / f"seed{settings['seed']}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "settings.tsv").write_text("".join(f"{name}\t{value}\n" for name, value in settings.items()))
    (folder / "environment.json").write_text(json.dumps({**ENVIRONMENT, **dict(environment)}))
    (folder / "command.txt").write_text(f"fairseq-train data/bin --adam-betas \\(0.9\\,0.98\\) --seed {settings['seed']}\n")
    if log is None:
        log = "fairseq_cli.train | Namespace(no_progress_bar=False)\n"
        for epoch, (loss, nll_loss, _, _) in enumerate(epochs, 1):
            log += inner(100 * epoch - 50) + inner(100 * epoch)
            log += valid(epoch, 100 * epoch, loss, nll_loss) + train(epoch, 100 * epoch)
    (folder / "train.log").write_text(log)
    first = {"pre": 0.5, "post": 1.0}[settings["ln_position"]] + int(settings["seed"]) / 10
    norms = [
        f"{update}\t{stack}\t{layer}\t{matrix}\t{first * layer / update}\n"
        for update in (1, 100)
        for stack in ("encoder", "decoder")
        for layer in (1, 2)
        for matrix in ("fc1.weight", "fc1.bias", "fc2.weight")
    ]
    header = "update\tstack\tlayer\tmatrix\tnorm\n1\tencoder\t\tembed_tokens.weight\t0.5\n"
    (folder / "checkpoints" / "grad_norm.tsv").write_text(header + "".join(norms))
    scores = []
    for epoch, (_, _, valid500, test) in enumerate(epochs, 1):
        scores += [(epoch, "test1", 500, valid500)] + ([(epoch, "test", lines, test)] if test is not None else [])
    if scores and done:
        write_scores(folder, scores)
    (folder / "wall_seconds").write_text("7500\n")
    if diverged:
        (folder / "diverged").write_text(diverged)
    if done:
        (folder / "done").write_text("2026-01-01T00:00:00Z\n")
    return folder


def table(text, heading):
    """The first Markdown table under a heading, as a list of dicts."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
