"""Fine-tunings on MRPC and RTE (figures 5b and 5c): what a checkpoint is worth on a task, and how far Pre-LN is ahead.

Accuracy and F1 are in percent, on the rows of dev, after the last epoch (appendix A.3).
"""

import math
from typing import NamedTuple

from fairseq_lnplugin.study.intervals import Estimate, mean, proportion
from fairseq_lnplugin.study.pretraining import experiment
from fairseq_lnplugin.study.run_folder import damaged, number, read, read_values

#: The figure of each task; a run is fine-tuned on the tasks of its figures.
TASKS = {"MRPC": "5b", "RTE": "5c"}
#: Names of a result.tsv.
RESULT = "task updates batch_size lr epochs seed rows_of_class_0 rows_of_class_1 accuracy f1".split()
ROUNDING = 0.0501  # fairseq logs percent with one decimal


class Finetuning(NamedTuple):
    """A fine-tuning after its last epoch. ``rows``: of class 0 and 1 in dev.

    ``accuracy`` and ``f1`` (of class 1) are in percent, NaN where it diverged. ``command``: that of fairseq-train.
    """

    pretraining: object
    task: str
    updates: int
    batch_size: int
    lr: str
    epochs: int
    seed: int
    rows: tuple
    accuracy: float
    f1: float
    command: str

    @property
    def cell(self):
        """What the search is over: batch size, rate and epochs."""
        return self.batch_size, self.lr, self.epochs

    @property
    def seeds(self):
        """Of the pre-training and of the fine-tuning."""
        return self.pretraining.run.seed, self.seed

    @property
    def one_answer(self):
        """The class that the model answers for every row, or None.

        Accuracy and F1 together tell: with accuracy p and F1 2p / (1 + p), p the share of class 1, no row of class 1 is
        missed and every row of class 0 is wrong; and an F1 of 0 with accuracy 1 - p has no row of class 1 right and none
        of class 0 wrong. fairseq logs one decimal, so that one or two rows of each class may be answered otherwise.
        """
        for answer in (0, 1):
            accuracy, f1 = constant(self.rows, answer)
            if abs(self.accuracy - accuracy) < ROUNDING and abs(self.f1 - f1) < ROUNDING:
                return answer
        return None


class Level(NamedTuple):
    """A checkpoint's worth on a task: the best cell of the search, by mean accuracy over all its seeds.

    ``items``: the cell's :class:`Finetuning` of each seed; ``searched``: cells with every seed; ``left_out``: the other
    cells with why.
    """

    name: str
    task: str
    updates: int
    cell: tuple
    items: list
    searched: int
    left_out: list

    @property
    def short_name(self):
        """The run's name without that of the study."""
        return self.items[0].pretraining.run.short_name

    @property
    def accuracy(self):
        """The mean with its interval, as :func:`over_seeds` has it."""
        return over_seeds({item.seeds: item.accuracy for item in self.items})

    @property
    def f1(self):
        """As accuracy."""
        return over_seeds({item.seeds: item.f1 for item in self.items})

    @property
    def pretrainings(self):
        """How many pre-trainings the items are of."""
        return len({item.pretraining.run.seed for item in self.items})

    @property
    def stuck(self):
        """How many items give one answer for every row."""
        return sum(item.one_answer is not None for item in self.items)

    @property
    def has_learned(self):
        """Whether the checkpoint has, in every pre-training, by the validation loss at its update."""
        return all(item.pretraining.has_learned(item.pretraining.loss_at(self.updates)) for item in self.items)

    @property
    def beats_majority(self):
        """Whether the mean accuracy is above :func:`by_chance`."""
        return self.accuracy.value > by_chance(self.items[0].rows)


class Lead(NamedTuple):
    """Pre-LN's mean accuracy less Post-LN's after equal updates: ``difference``, in points, over the seeds that both have."""

    pre: Level
    post: Level
    difference: Estimate

    @property
    def faults(self):
        """Why the difference says nothing, as a list of phrases; [] where it does."""
        both = self.pre, self.post
        faults = [] if any(level.has_learned for level in both) else ["neither pre-training has learned"]
        if not any(level.beats_majority for level in both):
            faults.append("neither accuracy is better than the majority class's")
        return faults


def read_finetunings(pretraining):
    """The :class:`Finetuning` of every result.tsv of a Pretraining, in order of task, update, cell and seed.

    Raises:
        RunFolderError: a result.tsv is damaged.

    """
    found = []
    for path in pretraining.run.folder.glob("finetune/*/*/result.tsv"):
        result = read_values(path, RESULT)
        try:
            whole = {name: int(result[name]) for name in RESULT if name not in ("task", "lr", "accuracy", "f1")}
            scores = [number(result[name] or math.nan) for name in ("accuracy", "f1")]
            float(result["lr"])
            if result["task"] not in TASKS or not all(math.isnan(score) or 0 <= score <= 100 for score in scores):
                raise ValueError(result["task"])
        except ValueError:
            raise damaged(path, "a value is no number", f"delete {path.parent} and run the recipe again") from None
        rows = whole.pop("rows_of_class_0"), whole.pop("rows_of_class_1")
        of_run = {"pretraining": pretraining, "task": result["task"], "lr": result["lr"], "rows": rows}
        of_run["command"] = read(path.parent / "command.txt", required=False).strip()
        found.append(Finetuning(**of_run, accuracy=scores[0], f1=scores[1], **whole))
    return sorted(found, key=lambda f: (f.task, f.updates, f.batch_size, float(f.lr), f.epochs, f.seed))


def constant(rows, answer):
    """Accuracy and F1 of class 1, in percent, of always answering ``answer``; ``rows``: how many of class 0 and 1."""
    accuracy = 100 * rows[answer] / sum(rows)
    return accuracy, 200 * rows[1] / (2 * rows[1] + rows[0]) if answer else 0.0


def majority(rows):
    """The class with more rows."""
    return int(rows[1] >= rows[0])


def by_chance(rows):
    """The accuracy in percent that always answering the majority class may have by chance in the choice of the rows.

    The upper end of Wilson's 95 % interval of its share.
    """
    return 100 * proportion(max(rows), sum(rows)).high


def over_seeds(values):
    """The mean of ``values`` by (seed of the pre-training, seed of the fine-tuning), and its 95 % interval.

    Fine-tunings of one pre-training have its weights in common, so where there are several pre-trainings, each counts with
    its mean, as one value. Of a single one, the interval is over its fine-tunings.
    """
    groups = {}
    for (pretraining, _), value in values.items():
        groups.setdefault(pretraining, []).append(value)
    return mean([mean(group).value for group in groups.values()] if len(groups) > 1 else values.values())


def levels(finetunings):
    """A :class:`Level` for each task, run and checkpoint that has a cell with every seed, of finished runs alone.

    Seeds of a run that are of different experiments have no mean, and a level each.
    """
    groups = {}
    for item in finetunings:
        run = item.pretraining.run
        if run.done:
            groups.setdefault((item.task, run.name, item.updates, experiment(run)), []).append(item)
    found = []
    for (task, name, updates, _), group in groups.items():
        seeds = {item.seeds for item in group}
        cells = {}
        for item in group:
            cells.setdefault(item.cell, []).append(item)
        whole = {cell: items for cell, items in cells.items() if not why_left_out(items, seeds)}
        left_out = [f"{cell_name(cell)}: {why_left_out(items, seeds)}" for cell, items in cells.items() if cell not in whole]
        candidates = [Level(name, task, updates, cell, items, len(whole), left_out) for cell, items in whole.items()]
        if candidates:
            found.append(max(candidates, key=lambda level: level.accuracy.value))
    return found


def why_left_out(items, seeds):
    """Why a cell cannot be chosen: no mean is taken over some of its seeds; "" for one that can."""
    diverged = [str(item.seed) for item in items if math.isnan(item.accuracy)]
    missing = len(seeds) - len(items)
    reasons = [f"seed {', '.join(diverged)} diverged"] if diverged else []
    return ", ".join(reasons + ([f"{missing} of {len(seeds)} seeds not there"] if missing else []))


def cell_name(cell):
    """``32, 1e-4, 3``."""
    return ", ".join(map(str, cell))


def leads(task, worth):
    """A :class:`Lead` for each checkpoint of a task that both positions have, by updates; ``worth``: the levels."""
    found = []
    of_task = sorted((level for level in worth if level.task == task), key=lambda level: level.updates)
    for pre in of_task:
        for post in of_task:
            ends = [level.items[0].pretraining for level in (pre, post)]
            if pre.updates != post.updates or [end.position for end in ends] != ["pre", "post"]:
                continue
            ours, theirs = ({item.seeds: item.accuracy for item in level.items} for level in (pre, post))
            differences = {seeds: ours[seeds] - theirs[seeds] for seeds in ours if seeds in theirs}
            if differences and experiment(ends[0].run) == experiment(ends[1].run):
                found.append(Lead(pre, post, over_seeds(differences)))
    return found
