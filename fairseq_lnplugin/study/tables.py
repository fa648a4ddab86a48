"""From the runs of a study to what is shown: rows of results.tsv, means over seeds, the paper's numbers, curves.

Everything here is numbers and names; page.py and bert.py word them, plots.py draws them.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from fairseq_lnplugin.study.intervals import Estimate, mean
from fairseq_lnplugin.study.run_folder import SETTINGS


class Corpus(NamedTuple):
    """A corpus of the paper as it uses it (appendix A.1). ``pairs``: for training; ``tokens``: of an update.

    ``exact``: ``pairs`` is what the usual script makes; ``said``: what the paper says of it, where that is another number;
    ``test``: the name and the lines of its test set, where it has one.
    """

    name: str
    pairs: int
    exact: bool
    tokens: int
    said: str = ""
    test: tuple = ()


#: IWSLT14's pairs are those of fairseq's prepare-iwslt14.sh.
CORPORA = (
    Corpus("iwslt14", 160_239, True, 4096, "about 153K"),
    Corpus("wmt14", 4_500_000, False, 8192 * 16, test=("newstest2014", 3003)),
)
#: Appendix A.1, which names no weight decay; fairseq's own setting has others.
PAPER_REGULARIZATION = {"dropout": 0.1, "label_smoothing": 0.1}
#: Epochs that figures 2 and 4 of the paper show for IWSLT14, and the plan's for WMT14, of which the text has none.
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
    *("hold_epochs", "decay", "decay_factor", "dropout", "label_smoothing", "max_tokens"),
    *("update_freq", "max_epoch", "max_update", "paper_bleu", "device", "threads", "torch", "fairseq"),
    *("scored_commit", "command"),
)

#: What settings.tsv says of a run besides how it is trained.
LABELS = ("study", "run", "figure", "seed", "paper_bleu", "paper_loss", "note")


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
        "commit": commit(run.environment),
        "scored_commit": ", ".join(scored_commits(run)),
        "command": run.command,
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


def commit(environment):
    """The commit of an environment.json, ``-dirty`` where a file differed from it, or None."""
    name = environment.get("commit")
    return f"{name}-dirty" if name and environment.get("dirty") else name


def scored_commits(run):
    """The different commits of a run's scorings; [] where none was kept, as in the folders of the first runs."""
    return list(dict.fromkeys(filter(None, map(commit, run.scored_with))))


def state(run):
    """``finished`` (trained and scored), ``diverged``, ``trained, not scored`` or ``not finished``."""
    if run.diverged:
        return "diverged" if run.done or not run.epochs else "diverged, not scored"
    return "finished" if run.done else "trained, not scored" if run.trained else "not finished"


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


@dataclass(frozen=True)
class RunMean:
    """All seeds of a run, and means over those that are finished, with 95 % t-intervals; None where no seed has the number.

    ``runs``: all; ``used``: finished with a finite validation loss; ``left_out`` names the others with their states.
    """

    name: str
    runs: list
    used: list
    left_out: list
    valid_loss: Estimate | None
    bleu: Estimate | None
    sacrebleu: Estimate | None

    @property
    def settings(self):
        """Those of the first seed."""
        return self.runs[0].settings

    @property
    def short_name(self):
        """The name without the study's."""
        return self.runs[0].short_name

    @property
    def diverged(self):
        """The seeds that diverged."""
        return [run for run in self.runs if run.diverged]

    @property
    def finished(self):
        """Whether a seed is, be it by divergence."""
        return any(run.done for run in self.runs)


def bleu_mean(scores):
    """The mean of scores in percent and its t-interval, which ends at 0."""
    estimate = mean(scores)
    return estimate._replace(low=max(estimate.low, 0.0)) if len(scores) > 1 else estimate


def means(runs):
    """A :class:`RunMean` for each run, in the order of ``runs``."""
    rows = []
    for name, group in by_name(runs).items():
        used = [run for run in group if run.done and run.best and math.isfinite(run.best.valid_loss)]
        scores = [score for score in (run.score(run.best, TEST) for run in used) if score]
        rows.append(
            RunMean(
                *(name, group, used, [f"seed {run.seed} {state(run)}" for run in group if run not in used]),
                mean([run.best.valid_loss for run in used]) if used else None,
                bleu_mean([score.bleu for score in scores]) if scores else None,
                bleu_mean([score.sacrebleu for score in scores]) if scores else None,
            )
        )
    return rows


class PaperBleu(NamedTuple):
    """What the paper's text says of a run: its ``words``, their one ``number`` or None, and whether that is an upper bound."""

    words: str
    number: float | None
    bound: bool


def paper_bleu(settings):
    """The :class:`PaperBleu` of a run or a row of a plan, or None where the paper says nothing."""
    words = settings.get("paper_bleu", "")
    numbers = re.findall(r"\d+(?:\.\d+)?", words)
    return PaperBleu(words, float(numbers[0]) if len(numbers) == 1 else None, "at best" in words) if words else None


def paper_losses(runs):
    """The validation losses that the paper's text gives of these runs, in order."""
    found = {number for run in runs for number in re.findall(r"\d+(?:\.\d+)?", run.settings.get("paper_loss", ""))}
    return sorted(map(float, found))


class Section(NamedTuple):
    """A figure of the paper ("" for none): its runs, and the rows of the plan of which there is no run folder."""

    figure: str
    runs: list
    absent: list


def sections(runs, plan):
    """A :class:`Section` for each figure of the paper, in order, and one for all other runs."""
    missing = absent(runs, plan)
    figures = {figure for settings in [*(run.settings for run in runs), *missing] for figure in figures_of(settings)}
    return [
        Section(
            figure,
            [run for run in runs if figure in figures_of(run.settings)],
            [row for row in missing if figure in figures_of(row)],
        )
        for figure in sorted(figures, key=lambda figure: (figure == "", figure))
    ]


def absent(runs, plan):
    """The rows of the plan of which there is no run folder."""
    names = {run.name for run in runs}
    return [row for row in plan if row["run"] not in names]


def to_go(runs, plan, chosen):
    """What has not begun, in words: runs of the plan, and seeds that recipes were told to train (``chosen``)."""
    absent_runs = [row["run"] for row in absent(runs, plan)]
    begun = {(run.name, run.seed) for run in runs}
    return absent_runs + [f"{run} seed {seed}" for run, seed in chosen if (run, seed) not in begun and run not in absent_runs]


def figures_of(settings):
    """The figures of the paper that a run or a row of a plan belongs to; [""] for none."""
    return [figure.strip() for figure in settings["figure"].split(",")]


def parts(runs):
    """Runs by the part of a figure that shows them: ``{"": runs}``, or SGD's apart, whose rates and losses are far off."""
    groups = {}
    for run in runs:
        groups.setdefault("SGD" if run.settings["optimizer"] == "sgd" else "Adam", []).append(run)
    return groups if len(groups) > 1 else {"": runs}


def not_the_papers(runs):
    """What makes these runs another experiment than the paper's, as a list of phrases; [] for none."""
    phrases = {}
    for settings in (run.settings for run in runs):
        known = corpus(settings)
        if known is None:
            phrases[f"other data ({settings['data'] or 'unknown'})"] = True
        elif is_part(settings):
            phrases[pairs_text([settings]) + (f", the paper says {known.said}" if known.said else "")] = True
        if settings["preset"] != "paper":
            phrases[f"preset {settings['preset']} ({settings['arch']})"] = True
        tokens, epochs = settings.get("max_tokens", ""), settings.get("max_epoch", "")
        if known and tokens.isdecimal() and int(tokens) != known.tokens:
            phrases[f"{int(tokens):,} tokens an update, the paper {known.tokens:,}"] = True
        for name, papers in PAPER_REGULARIZATION.items():
            if known and settings.get(name) and float(settings[name]) != papers:
                phrases[f"{name.replace('_', ' ')} {settings[name]}, the paper {papers:g}"] = True
        if known and epochs.isdecimal() and int(epochs) < PAPER_EPOCHS:
            phrases[f"at most {epochs} epochs, the {'paper' if known.exact else 'plan'} {PAPER_EPOCHS}"] = True
        if known and settings.get("max_update"):
            phrases[f"at most {int(settings['max_update']):,} updates"] = True
    return list(phrases)


def scaled(runs, plan, name):
    """Pairs of a plan's length that a preset scaled and the runs' own; ``name``: ``warmup_updates`` or ``hold_epochs``."""
    planned = {row["run"]: row.get(name, "") for row in plan}
    pairs = {(planned.get(run.name, ""), run.settings.get(name, "")) for run in runs}
    return sorted((int(papers), int(ours)) for papers, ours in pairs if papers and papers != ours)


def corpus(settings):
    """The paper's :class:`Corpus` that a run's data is, or is a part of; None for other data."""
    return next((known for known in CORPORA if settings["data"].startswith(known.name)), None)


def is_part(settings):
    """Whether the training pairs are not all of the paper's corpus; where its number is "about", up to a tenth may lack."""
    known, count = corpus(settings), pairs(settings)
    return known is not None and count != known.pairs and (known.exact or count is None or count < 0.9 * known.pairs)


def pairs(settings):
    """Training pairs as a whole number, or None where the settings do not say."""
    return int(settings["pairs"]) if settings["pairs"].isdecimal() else None


def pairs_text(several):
    """``40,653 of 160,239 pairs``: of how many training pairs these settings are, and of how many in the paper."""
    counts = sorted({pairs(settings) for settings in several if pairs(settings) is not None})
    if not counts:
        return "an unknown number of pairs"
    shown = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    wholes = {corpus(settings) for settings in several}
    if len(wholes) == 1 and any(map(is_part, several)):
        whole = wholes.pop()
        return f"{shown} of {'' if whole.exact else 'about '}{whole.pairs:,} pairs"
    return f"{shown} pairs"


def made_up(settings):
    """Whether the text comes from recipes/corpora/grammar.py."""
    return settings["data"] == "grammar"


def loss_name(runs):
    """``base 2, label-smoothed 0.1``: which loss fairseq's validation loss is."""
    values = {run.settings.get("label_smoothing", "") for run in runs}
    if not values:
        return "base 2"
    if len(values) > 1:
        return "base 2, label-smoothed as label_smoothing says"
    value = values.pop()
    return "base 2, not smoothed" if value in ("0", "0.0") else f"base 2, label-smoothed {value}".strip()


class Curve(NamedTuple):
    """A line of a figure. ``run``: the name that its style belongs to, which seeds share; ``label``: for the legend.

    ``end``: where a diverged run ended, ``(x, last y)``, the y None where it has no point; None for a run that did not.
    """

    run: str
    label: str
    x: list
    y: list
    end: tuple | None = None


def valid_loss_curves(runs):
    """Validation loss (base 2) against the epoch."""
    return curves(runs, lambda run: [(epoch.epoch, epoch.valid_loss) for epoch in run.epochs])


def bleu_curves(runs):
    """BLEU on the first validation sentences against the epoch."""
    return curves(runs, lambda run: [(score.epoch, score.bleu) for score in run.scores if score.subset == VALID500])


def learning_rate_curves(runs):
    """The learning rate, as logged, against the epochs so far."""
    return curves(runs, lambda run: [(point.epochs, point.lr) for point in run.points])


def curves(runs, points):
    """A :class:`Curve` for each run and seed with a finite point or a divergence; ``points(run)`` gives the pairs (x, y)."""
    result = []
    groups = by_name(runs)
    for run in runs:
        finite = [(x, y) for x, y in points(run) if math.isfinite(x) and math.isfinite(y)]
        end = (epochs_so_far(run), finite[-1][1] if finite else None) if run.diverged else None
        if finite or end:
            label = legend_label(run.short_name, groups[run.name])
            result.append(Curve(run.name, label, [x for x, _ in finite], [y for _, y in finite], end))
    return result


def legend_label(name, group):
    """A run's name with its number of seeds and what diverged."""
    diverged = [run.diverged.update for run in group if run.diverged]
    remarks = [f"{len(group)} seeds"] if len(group) > 1 else []
    if diverged and len(diverged) == len(group):
        remarks.append(f"diverged at update {' and '.join(map(str, sorted(set(diverged))))}")
    elif diverged:
        remarks.append(f"{len(diverged)} diverged")
    return name + (f" ({', '.join(remarks)})" if remarks else "")


def epochs_so_far(run):
    """How many epochs the log tells of, with a fraction."""
    last = [point.epochs for point in run.points[-1:] if math.isfinite(point.epochs)]
    return max([*last, run.last.epoch if run.last else 0])


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
        more += " (a line a seed)" if len({run.seed for run in runs if run.name == alike[0].name}) > 1 else ""
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
