"""Read run folders ``<study>/<run>/seed<k>/``: the contract between the recipes that write them and the report.

A folder holds settings.tsv, environment.json (code and machine of the training), command.txt, train.log,
checkpoints/grad_norm.tsv, scores.tsv, scored_with.json (as environment.json, of the last scoring; scored_with.<n>.json
are those before it), decode/
(fairseq-generate's output on the test set), wall_seconds and score_seconds (what training and scoring took), ``trained``
or ``diverged``, and ``done`` once the run is trained and scored. A file that is missing or damaged is an error, except for
what a run still under way cannot have.
Only ``done`` runs are finished. A plan is a table of the runs that a study is to have (:func:`read_plan`); ``chosen`` in the
study's folder names the runs and seeds that recipes were told to train (:func:`read_chosen`).
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

#: What a plan has at least, by the names of settings.tsv; its values are the paper's, which a preset may shorten.
PLAN_COLUMNS = ("study", "run", "figure", "ln_position", "optimizer", "lr", "schedule", "warmup_updates")
#: Names that every settings.tsv has; an empty value means that the setting does not apply.
SETTINGS = (
    *("study", "run", "figure", "data", "pairs", "preset", "arch", "ln_position", "weight_init", "compute_dtype"),
    *("optimizer", "lr", "schedule", "warmup_updates", "seed"),
)
SCORE_COLUMNS = "epoch updates subset lines bleu bleu_signature sacrebleu sacrebleu_signature checkpoint".split()
GRAD_NORM_COLUMNS = "update stack layer matrix norm".split()
LOG_RECORD = re.compile(r"\| (train_inner|train|valid) \| (?=\{)")


class RunFolderError(Exception):
    """A run folder cannot be read; the message is one sentence for the user: what, where, what to do."""


class Epoch(NamedTuple):
    """An epoch's end. Losses are fairseq's: per target token, in base 2, ``valid_loss`` with label smoothing.

    ``wall``: seconds since the start of training at the epoch's end. What the log lacks is NaN.
    """

    epoch: int
    updates: int
    train_loss: float
    valid_loss: float
    valid_nll_loss: float
    wall: float


class Point(NamedTuple):
    """A ``train_inner`` line: update number, epochs so far (a fraction), learning rate, loss (base 2), gradient norm; or NaN."""

    update: int
    epochs: float
    lr: float
    loss: float
    gnorm: float


class Score(NamedTuple):
    """A row of scores.tsv; both scores in percent."""

    epoch: int
    updates: int
    subset: str
    lines: int
    bleu: float
    bleu_signature: str
    sacrebleu: float
    sacrebleu_signature: str
    checkpoint: str


class GradNorm(NamedTuple):
    """Frobenius norm of one matrix' gradient; ``layer`` counts from 1 and is None outside the layers."""

    update: int
    stack: str
    layer: int | None
    matrix: str
    norm: float


class Divergence(NamedTuple):
    """Where and how a training ended in NaN, Inf or fairseq's minimum loss scale; ``update``: the one after the last logged."""

    update: int
    message: str


@dataclass(frozen=True)
class Run:
    """What a run folder says, in order of epochs and updates; ``grad_norms`` are the first logged update's."""

    folder: Path
    settings: dict
    environment: dict
    scored_with: list
    command: str
    epochs: list
    points: list
    scores: list
    grad_norms: list
    diverged: Divergence | None
    wall_seconds: float | None
    score_seconds: float | None
    trained: bool
    done: bool

    @property
    def name(self):
        """The run's name, which its seeds share."""
        return self.settings["run"]

    @property
    def short_name(self):
        """The name without that of the study in front."""
        return self.name.removeprefix(f"{self.settings['study']}-") or self.name

    @property
    def seed(self):
        """The seed, a whole number."""
        return int(self.settings["seed"])

    @property
    def best(self):
        """The epoch of the best validation loss, the earlier one of equals; None before the first epoch's end."""
        key = lambda epoch: (epoch.valid_loss if math.isfinite(epoch.valid_loss) else math.inf, epoch.epoch)  # noqa: E731
        return min(self.epochs, key=key, default=None)

    @property
    def last(self):
        """The last epoch, or None."""
        return self.epochs[-1] if self.epochs else None

    @property
    def updates(self):
        """How many updates the log tells of."""
        return max([epoch.updates for epoch in self.epochs[-1:]] + [point.update for point in self.points[-1:]] + [0])

    def score(self, epoch, subset):
        """The score of an :class:`Epoch` (None is allowed) on a subset, or None."""
        wanted = (epoch.epoch if epoch else None, subset)
        return next((score for score in self.scores if (score.epoch, score.subset) == wanted), None)


def read_study(folder):
    """All runs of a study's folder, as a list of :class:`Run` by name and seed.

    Raises:
        RunFolderError: there is no such folder, it holds no runs, or one of them cannot be read.

    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"there is no folder {folder}; give the folder of a study, such as runs/quickstart")
    if (folder / "settings.tsv").is_file():
        raise RunFolderError(f"{folder} is the folder of one run; give the study's, {folder.parent.parent}")
    folders = [path for path in folder.glob("*/seed*") if path.is_dir() and begun(path)]
    if not folders:
        studies = sorted({str(path.parent.parent) for path in folder.glob("*/*/seed*") if path.is_dir()})
        hint = f"give one of {', '.join(studies)}" if studies else "train some with a recipe, or give a study's folder"
        raise RunFolderError(f"{folder} holds no run folders <run>/seed<k>; {hint}")
    return sorted((read_run(path) for path in folders), key=lambda run: (run.name, run.seed))


def begun(folder):
    """Whether a run's folder holds more than the lock with which its recipe begins."""
    return any((folder / name).exists() for name in ("settings.tsv", "command.txt", "train.log", "done"))


def read_run(folder):
    """The :class:`Run` of one folder ``<run>/seed<k>``.

    Raises:
        RunFolderError: a file is damaged, or one is missing that the state of the run requires.

    """
    folder = Path(folder)
    settings = read_settings(folder / "settings.tsv")
    if (settings["run"], f"seed{settings['seed']}") != (folder.parent.name, folder.name):
        raise RunFolderError(
            f"{folder / 'settings.tsv'} is of {settings['run']}/seed{settings['seed']}; "
            "give the folder its own name again, or delete it"
        )
    diverged, done = read_divergence(folder / "diverged"), (folder / "done").is_file()
    epochs, points = read_log(folder / "train.log", required=done)
    is_translation = settings.get("task", "translation") == "translation"
    scores = read_scores(folder / "scores.tsv", required=done and bool(epochs) and not diverged and is_translation)
    return Run(
        folder=folder,
        settings=settings,
        environment=read_environment(folder / "environment.json", required=done),
        scored_with=[read_environment(path, required=True) for path in sorted(folder.glob("scored_with*.json"))],
        command=read(folder / "command.txt", required=done).strip(),
        epochs=epochs,
        points=points,
        scores=scores,
        grad_norms=read_first_grad_norms(folder / "checkpoints" / "grad_norm.tsv"),
        diverged=diverged,
        wall_seconds=read_seconds(folder / "wall_seconds"),
        score_seconds=read_seconds(folder / "score_seconds"),
        trained=(folder / "trained").is_file() or diverged is not None or done,
        done=done,
    )


def read_plan(path, studies):
    """The rows of a plan that belong to ``studies``, as dicts of texts by column; "-" is an empty cell, # a comment.

    Raises:
        RunFolderError: there is no such file, it lacks a column of :data:`PLAN_COLUMNS`, or a row has other cells.

    """
    path = Path(path)
    text = read(path, required=True, advice="give a table of the study's runs, such as recipes/runs.tsv")
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line and not line.startswith("#")]
    names = lines[0][1].split("\t") if lines else []
    missing = [name for name in PLAN_COLUMNS if name not in names]
    if missing:
        raise RunFolderError(f"{path} is no plan: its first line lacks the columns {', '.join(missing)}")
    rows = []
    for i, line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != len(names):
            raise RunFolderError(f"{path}, line {i}: {len(cells)} cells for {len(names)} columns; one tab between two")
        rows.append({name: "" if cell == "-" else cell for name, cell in zip(names, cells, strict=True)})
    return [row for row in rows if row["study"] in studies]


def read_chosen(folder):
    """The runs and seeds that recipes were told to train in a study's folder, as a list of pairs; [] where none were.

    Raises:
        RunFolderError: a line is no run, tab and seed.

    """
    path = Path(folder) / "chosen"
    pairs = []
    for number, line in enumerate(read(path, required=False).splitlines(), 1):
        match = re.fullmatch(r"(\S+)\t(\d+)", line)
        if not match:
            raise damaged(path, f"line {number} is no run and seed", "delete it: the recipe writes it again")
        pairs.append((match[1], int(match[2])))
    return pairs


def read(path, required, advice=None):
    """The text of a UTF-8 file with line feeds only; "" where there is none and ``required`` is false.

    ``advice``: what to do without it, instead of training again.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not required:
            return ""
        advice = advice or f"delete {path.parent} and run its recipe again"
        raise RunFolderError(f"there is no {path}; {advice}") from None
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror}); make it readable, or delete it") from None
    except UnicodeDecodeError as error:
        raise damaged(path, f"byte {error.start} is not UTF-8", advice) from None


def damaged(path, what, advice=None):
    """The error of a file with wrong content; ``advice``: what to do instead of training again."""
    advice = advice or f"delete {path.parent} and run its recipe again"
    return RunFolderError(f"{path} is damaged ({what}); put it right, or {advice}")


def read_values(path, names):
    """A file of names and values, a tab between them, as a dict of texts that has all of ``names``."""
    values = {}
    for number, line in enumerate(read(path, required=True).splitlines(), 1):
        name, tab, value = line.partition("\t")
        if line and not tab:
            raise damaged(path, f"line {number} has no tab")
        if name in values:
            raise damaged(path, f"{name} is there twice")
        if line:
            values[name] = value.strip()
    missing = [name for name in names if name not in values]
    if missing:
        raise damaged(path, f"it lacks {', '.join(missing)}")
    return values


def read_settings(path):
    """settings.tsv as a dict of texts."""
    settings = read_values(path, SETTINGS)
    if not re.fullmatch(r"\d+", settings["seed"]):
        raise damaged(path, f"the seed is {settings['seed']!r}")
    return settings


def read_environment(path, required):
    """What ``fairseq-ln environment`` wrote as a dict; {} where there is none."""
    text = read(path, required)
    try:
        environment = json.loads(text) if text or required else {}
    except ValueError as error:
        raise damaged(path, f"no JSON: {error}") from None
    if not isinstance(environment, dict):
        raise damaged(path, "no JSON object")
    return environment


def read_divergence(path):
    """The file ``diverged``, an update number and a message, or None where there is none."""
    if not path.is_file():
        return None
    match = re.match(r"(\d+)\s*(.*)", read(path, required=True).strip())
    if not match:
        raise damaged(path, "it does not begin with an update number")
    return Divergence(int(match[1]), match[2])


def read_seconds(path):
    """How long something took, or None where there is no such file."""
    text = read(path, required=False).strip()
    if not text:
        return None
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise damaged(path, f"{text[:40]!r} is no number of seconds", "delete it")
    return float(text)


def read_log(path, required):
    """The epochs and the ``train_inner`` points of train.log.

    A log may hold several sittings: one that goes on from an earlier update replaces all that came after it. Lines
    that are no whole record, such as the last one of a killed training, are passed over.
    """
    epochs, points, train = {}, {}, {}
    if not required and not path.exists():
        return [], []
    for kind, values in log_records(path):
        if kind == "train_inner":
            update = int(values["num_updates"])
            points = {key: point for key, point in points.items() if key < update}
            epochs = {key: epoch for key, epoch in epochs.items() if epoch.updates < update}
            points[update] = Point(update, *(number(values.get(name)) for name in ("update", "lr", "loss", "gnorm")))
        elif kind == "valid":
            epoch, updates = int(values["epoch"]), int(values["valid_num_updates"])
            points = {key: point for key, point in points.items() if key <= updates}
            epochs = {key: other for key, other in epochs.items() if key < epoch}
            losses = (number(values.get(name)) for name in ("valid_loss", "valid_nll_loss"))
            epochs[epoch] = Epoch(epoch, updates, math.nan, *losses, math.nan)
        else:
            train[int(values["epoch"])] = (number(values.get("train_loss")), number(values.get("train_wall")))
    for epoch, (loss, wall) in train.items():
        if epoch in epochs:
            epochs[epoch] = epochs[epoch]._replace(train_loss=loss, wall=wall)
    return [epochs[epoch] for epoch in sorted(epochs)], [points[update] for update in sorted(points)]


def read_validations(path):
    """Every validation of train.log, also those inside an epoch, as pairs (updates, loss) in order; [] where there is no log.

    A sitting that goes on from an earlier update replaces all that came after it, as in :func:`read_log`.
    """
    validations = {}
    if not path.exists():
        return []
    for kind, values in log_records(path):
        if kind == "train_inner":
            validations = {key: loss for key, loss in validations.items() if key < int(values["num_updates"])}
        elif kind == "valid":
            validations[int(values["valid_num_updates"])] = number(values.get("valid_loss"))
    return sorted(validations.items())


def log_records(path):
    """The whole records of train.log as a list of ``(kind, values)``."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return [record for record in map(log_record, file) if record]
    except OSError as error:
        advice = "make it readable, or delete the run's folder and run its recipe again"
        raise RunFolderError(f"{path} cannot be read ({error.strerror}); {advice}") from None


def log_record(line):
    """``(kind, values)`` of a line of fairseq's JSON log, or None; of two torn into one line, the last."""
    matches = list(LOG_RECORD.finditer(line)) if "| {" in line else []
    if not matches:
        return None
    try:
        values = json.loads(line[matches[-1].end() :])
        needed = {"train_inner": ["num_updates"], "valid": ["epoch", "valid_num_updates"], "train": ["epoch"]}
        for name in needed[matches[-1][1]]:
            int(values[name])
    except (ValueError, KeyError, TypeError):
        return None
    return matches[-1][1], values


def number(value):
    """A number of fairseq's JSON, which may be a text; NaN for null and for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def read_table(path, columns, text, advice):
    """The rows of a table as lists of texts, with their line numbers; ``advice`` as for :func:`damaged`."""
    header, *lines = text.splitlines() or [""]
    if header.split("\t") != columns:
        raise damaged(path, f"its first line is not the columns {' '.join(columns)}", advice)
    return [(i, line.split("\t")) for i, line in enumerate(lines, 2)]


def read_scores(path, required):
    """scores.tsv as a list of :class:`Score` by epoch and subset; [] where there is none."""
    advice = f"delete it and {path.parent / 'done'}, and run the recipe again to score the checkpoints anew"
    text = read(path, required, advice)
    if not text and not required:
        return []
    scores = {}
    for i, row in read_table(path, SCORE_COLUMNS, text, advice):
        try:
            epoch, updates, subset, lines, bleu, bleu_signature, sacrebleu, sacrebleu_signature, checkpoint = row
            score = Score(
                *(int(epoch), int(updates), subset, int(lines), float(bleu), bleu_signature),
                *(float(sacrebleu), sacrebleu_signature, checkpoint),
            )
        except ValueError:
            raise damaged(path, f"line {i} is no row of scores", advice) from None
        scores[score.epoch, score.subset] = score
    return [scores[key] for key in sorted(scores)]


def read_first_grad_norms(path):
    """The norms of the first update in grad_norm.tsv as a list of :class:`GradNorm`; [] where there are none.

    A last line without its end, of a run under way or killed, does not count.
    """
    advice = "move it away; the report then goes without"
    text = read(path, required=False, advice=advice)
    text = text[: text.rfind("\n") + 1]
    if not text:
        return []
    norms = []
    for i, row in read_table(path, GRAD_NORM_COLUMNS, text, advice):
        try:
            update, stack, layer, matrix, norm = row
            entry = GradNorm(int(update), stack, int(layer) if layer else None, matrix, float(norm))
        except ValueError:
            raise damaged(path, f"line {i} is no row of gradient norms", advice) from None
        if norms and entry.update != norms[0].update:
            break
        norms.append(entry)
    return norms
