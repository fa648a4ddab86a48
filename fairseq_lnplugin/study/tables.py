"""From the runs of a study to what is shown: rows of results.tsv, means over seeds, differences to the paper, curves.

Everything here is numbers and names; report.py words them and plots.py draws them.
"""

import math
import re
from typing import NamedTuple

from fairseq_lnplugin.analysis.intervals import Estimate, mean
from fairseq_lnplugin.study.run_folder import SETTINGS

#: Training pairs of IWSLT14 De-En as fairseq's prepare-iwslt14.sh makes it.
IWSLT14_PAIRS = 160_239
#: Epochs that figures 2 and 4 of the paper show.
PAPER_EPOCHS = 15
#: Subsets of scores.tsv: the test set, and the first 500 validation sentences (fairseq's second --testpref).
TEST, VALID500 = "test", "test1"
#: The matrices of figure 3, in the words of the paper.
PAPER_MATRICES = {"fc1.weight": "W1", "fc2.weight": "W2"}

#: results.tsv begins with these columns; all that follow may change.
COLUMNS = (
    *("run", "figure", "data", "pairs", "preset", "arch", "ln_position", "weight_init", "compute_dtype", "optimizer"),
    *("lr", "warmup_updates", "schedule", "seed", "epochs", "updates", "valid_loss", "valid_nll_loss", "bleu"),
    *("sacrebleu", "signature", "diverged_at", "wall_seconds", "commit"),
)
MORE_COLUMNS = (
    *("study", "state", "best_epoch", "bleu_signature", "test_lines", "last_valid_loss", "last_bleu", "last_sacrebleu"),
    *("hold_epochs", "hold_updates", "decay", "decay_factor", "dropout", "label_smoothing", "max_tokens"),
    *("update_freq", "max_epoch", "max_update", "paper_bleu", "device", "threads", "torch", "fairseq"),
)

#: What settings.tsv says of a run besides how it is trained.
LABELS = ("study", "run", "figure", "seed", "paper_bleu", "note")


def results(runs):
    """A dict of texts a run by column of results.tsv; "" is a number that there is none of.

    ``valid_loss`` (base 2, label-smoothed), ``valid_nll_loss`` and the scores are of the epoch with the best validation
    loss; ``epochs`` and ``updates`` are how far the run got; ``signature`` is sacreBLEU's.
    """
    return [result(run) for run in runs]


def result(run):
    """The row of one run."""
    best, last = run.best, run.last
    score, last_score = run.score(best, TEST), run.score(last, TEST)
    row = {name: run.settings.get(name, "") for name in (*COLUMNS, *MORE_COLUMNS)}
    row |= {name: run.environment.get(name) for name in ("device", "threads", "torch", "fairseq")}
    row |= {
        "epochs": len(run.epochs),
        "updates": run.updates,
        "valid_loss": best and best.valid_loss,
        "valid_nll_loss": best and best.valid_nll_loss,
        "bleu": score and score.bleu,
        "sacrebleu": score and score.sacrebleu,
        "signature": score and score.sacrebleu_signature,
        "diverged_at": run.diverged and run.diverged.update,
        "wall_seconds": run.wall_seconds,
        "commit": commit(run),
        "state": state(run),
        "best_epoch": best and best.epoch,
        "bleu_signature": score and score.bleu_signature,
        "test_lines": score and score.lines,
        "last_valid_loss": last and last.valid_loss,
        "last_bleu": last_score and last_score.bleu,
        "last_sacrebleu": last_score and last_score.sacrebleu,
    }
    return {name: text(value) for name, value in row.items()}


def text(value):
    """A cell: "" for None, a whole number without a point, else the shortest form; never a tab or a line's end."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return " ".join(str(value).split())


def commit(run):
    """The commit that a run was made with, ``-dirty`` where a file differed from it, or None."""
    name = run.environment.get("commit")
    return f"{name}-dirty" if name and run.environment.get("dirty") else name


def state(run):
    """``finished``, ``diverged`` or ``not finished``; a run is finished when it is trained and scored."""
    if run.diverged:
        return "diverged" if run.done or not run.epochs else "diverged, not scored"
    return "finished" if run.done else "not finished"


def tsv(rows):
    """The text of results.tsv."""
    lines = [(*COLUMNS, *MORE_COLUMNS), *([row[name] for name in (*COLUMNS, *MORE_COLUMNS)] for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines)


def split_settings(runs):
    """The settings that all runs share, as a dict, and the names of those that differ; what none has is left out."""
    names = dict.fromkeys(name for run in runs for name in (*SETTINGS, *run.settings) if name not in LABELS)
    values = {name: list(dict.fromkeys(run.settings.get(name, "") for run in runs)) for name in names}
    shared = {name: value[0] for name, value in values.items() if len(value) == 1 and value[0]}
    return shared, [name for name, value in values.items() if len(value) > 1]


def by_name(runs):
    """The runs of each name, in order of seeds."""
    groups = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def bleu(run):
    """Tokenized BLEU on the test set at the epoch of the best validation loss, or None."""
    score = run.score(run.best, TEST)
    return score and score.bleu


class SeedMean(NamedTuple):
    """A run's means over its finished seeds, each None where no seed has the number. ``count``: seeds with a loss."""

    name: str
    seeds: int
    count: int
    left_out: list
    valid_loss: Estimate | None
    bleu: Estimate | None
    sacrebleu: Estimate | None


def seed_means(runs):
    """A :class:`SeedMean` for each run that has several seeds, with 95 % t-intervals.

    ``left_out`` names the seeds that give no number: not finished, or diverged before the first epoch's end.
    """
    means = []
    for name, group in by_name(runs).items():
        used = [run for run in group if run.done and run.best and math.isfinite(run.best.valid_loss)]
        scores = [score for score in (run.score(run.best, TEST) for run in used) if score]
        if len(group) > 1:
            left_out = [f"seed {run.seed} {state(run)}" for run in group if run not in used]
            means.append(
                SeedMean(
                    *(name, len(group), len(used), left_out),
                    mean([run.best.valid_loss for run in used]) if used else None,
                    mean([score.bleu for score in scores]) if scores else None,
                    mean([score.sacrebleu for score in scores]) if scores else None,
                )
            )
    return means


class Difference(NamedTuple):
    """Our BLEU beside the paper's. ``paper``: its words; ``difference``: ours minus its number, None without one.

    ``bound``: the paper's number is the best of several runs, so a smaller one agrees with it.
    """

    name: str
    seeds: int
    ours: float | None
    paper: str
    difference: float | None
    bound: bool


def differences(runs):
    """A :class:`Difference` for each run of which the paper's text gives a BLEU; ours: mean over finished seeds."""
    rows = []
    for name, group in by_name(runs).items():
        paper = group[0].settings.get("paper_bleu", "")
        if paper:
            scores = [score for score in (bleu(run) for run in group if run.done) if score is not None]
            ours = mean(scores).value if scores else None
            numbers = re.findall(r"\d+(?:\.\d+)?", paper)
            known = ours is not None and len(numbers) == 1
            difference = ours - float(numbers[0]) if known else None
            rows.append(Difference(name, len(scores), ours, paper, difference, "at best" in paper))
    return rows


def not_the_papers(runs):
    """What makes these runs another experiment than the paper's, as a list of phrases; [] for none."""
    phrases = {}
    for settings in (run.settings for run in runs):
        if not is_iwslt14(settings):
            phrases[f"other data ({settings['data'] or 'unknown'})"] = True
        elif pairs(settings) != IWSLT14_PAIRS:
            phrases[f"{pairs_text([settings])}"] = True
        if settings["preset"] != "paper":
            phrases[f"preset {settings['preset']} ({settings['arch']})"] = True
        epochs = settings.get("max_epoch", "")
        if epochs.isdecimal() and int(epochs) < PAPER_EPOCHS:
            phrases[f"at most {epochs} epochs, the paper {PAPER_EPOCHS}"] = True
    return list(phrases)


def is_iwslt14(settings):
    """Whether the corpus is IWSLT14 or a part of it."""
    return settings["data"].startswith("iwslt14")


def pairs(settings):
    """Training pairs as a whole number, or None where the settings do not say."""
    return int(settings["pairs"]) if settings["pairs"].isdecimal() else None


def pairs_text(several):
    """``40,653 of 160,239 pairs``: of how many training pairs these settings are, and of how many for IWSLT14."""
    counts = sorted({pairs(settings) for settings in several if pairs(settings) is not None})
    if not counts:
        return "an unknown number of pairs"
    shown = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    part = all(is_iwslt14(settings) for settings in several) and counts[0] < IWSLT14_PAIRS
    return f"{shown} of {IWSLT14_PAIRS:,} pairs" if part else f"{shown} pairs"


def made_up(settings):
    """Whether the text comes from recipes/corpora/grammar.py."""
    return settings["data"] == "grammar"


def loss_name(runs):
    """``base 2, label-smoothed 0.1``: which loss fairseq's validation loss is."""
    values = {run.settings.get("label_smoothing", "") for run in runs}
    if len(values) > 1:
        return "base 2, label-smoothed as label_smoothing says"
    value = values.pop()
    return "base 2, not smoothed" if value in ("0", "0.0") else f"base 2, label-smoothed {value}".strip()


class Curve(NamedTuple):
    """A line of a figure. ``run``: the name that its style belongs to, which seeds share; ``label``: for the legend."""

    run: str
    label: str
    x: list
    y: list


def valid_loss_curves(runs):
    """Validation loss (base 2) against the epoch."""
    return curves(runs, lambda run: [(epoch.epoch, epoch.valid_loss) for epoch in run.epochs])


def bleu_curves(runs):
    """BLEU on the first validation sentences against the epoch."""
    return curves(runs, lambda run: [(score.epoch, score.bleu) for score in run.scores if score.subset == VALID500])


def learning_rate_curves(runs):
    """The learning rate against the update, as logged."""
    return curves(runs, lambda run: [(point.update, point.lr) for point in run.points])


def curves(runs, points):
    """A :class:`Curve` for each run and seed with a finite point; ``points(run)`` gives the pairs (x, y)."""
    result = []
    groups = by_name(runs)
    for run in runs:
        finite = [(x, y) for x, y in points(run) if math.isfinite(y)]
        group = groups[run.name]
        remarks = [f"{len(group)} seeds"] if len(group) > 1 else []
        diverged = sum(other.diverged is not None for other in group)
        if diverged:
            remarks.append("diverged" if diverged == len(group) else f"{diverged} diverged")
        if finite:
            label = run.short_name + (f" ({', '.join(remarks)})" if remarks else "")
            result.append(Curve(run.name, label, [x for x, _ in finite], [y for _, y in finite]))
    return result


def grad_norm_curves(runs):
    """Norms of W1 and W2 at the first logged update against the layer: ``{(stack, "W1" or "W2"): [Curve, ...]}``.

    Runs that begin alike have the same norms there whatever their learning rate; they share one curve.
    """
    panels, same = {}, {}
    for run in runs:
        panel_points = {}
        for norm in run.grad_norms:
            if norm.layer and norm.matrix in PAPER_MATRICES and math.isfinite(norm.norm):
                panel = norm.stack, PAPER_MATRICES[norm.matrix]
                panel_points.setdefault(panel, []).append((norm.layer, norm.norm))
        if panel_points:
            key = repr((run.grad_norms[0].update, panel_points))
            same.setdefault(key, (panel_points, []))[1].append(run)
    for panel_points, alike in same.values():
        names = list(dict.fromkeys(run.short_name for run in alike))
        more = f" and {len(names) - 1} more with the same norms" if len(names) > 1 else ""
        seeds = by_name(runs)[alike[0].name]
        more += f" ({len(seeds)} seeds)" if len(seeds) > 1 else ""
        for panel, points in panel_points.items():
            x, y = zip(*sorted(points), strict=True)
            panels.setdefault(panel, []).append(Curve(alike[0].name, names[0] + more, list(x), list(y)))
    return panels


def first_updates(runs):
    """The update numbers that the gradient norms are of, in order."""
    return sorted({run.grad_norms[0].update for run in runs if run.grad_norms})


def valid500_lines(runs):
    """How many validation sentences BLEU is of, per epoch; the largest number where runs differ."""
    return max((score.lines for run in runs for score in run.scores if score.subset == VALID500), default=0)
