"""The report of figure 5: masked-LM pre-training with Pre-LN and Post-LN, and what its checkpoints are worth on MRPC and RTE.

From the run folders of ``recipes/bert.sh``: all validations of a run by update, and its fine-tunings, one result.tsv in each
``finetune/<TASK>/<name>/``. The paper (section 4.2) compares how many updates each position needs for the same validation loss,
and the accuracy of fine-tuned checkpoints at equal updates (appendix A.3: a search over batch size, rate and epochs, six seeds,
95 % interval on the validation set).
"""

import math
from typing import NamedTuple

from fairseq_lnplugin.analysis.intervals import Estimate, mean
from fairseq_lnplugin.study import tables
from fairseq_lnplugin.study.page import Drawing, first_command, perplexity, shown, trained_with, values
from fairseq_lnplugin.study.run_folder import damaged, number, read_validations, read_values
from fairseq_lnplugin.study.wording import count, decimals, distinct, duration, grid, interval, named

#: Wikipedia and BookCorpus (section 4.1).
PAPER_WORDS = 3_400_000_000
#: Updates after which each position has about the same validation loss (section 4.2, whose text swaps the two numbers).
PAPER_UPDATES = {"post": 700_000, "pre": 500_000}
PAPER_LOSS = 1.69
#: The figure of each task; a run is fine-tuned on the tasks of its figures.
TASKS = {"MRPC": "5b", "RTE": "5c"}
#: What is shown of each task; the paper shows accuracies only.
MEASURES = (("MRPC", "accuracy"), ("MRPC", "f1"), ("RTE", "accuracy"))
#: What the search is over, in words.
SEARCHED = {"batch_size": "batch", "lr": "lr", "epochs": "epochs"}
MEASURE_NAMES = {"accuracy": "accuracy", "f1": "F1 of class 1"}
#: Names of a result.tsv, and so the columns of finetunings.tsv after run and pre-training seed.
RESULT = "task updates batch_size lr epochs seed rows_of_class_0 rows_of_class_1 accuracy f1".split()
COLUMNS = (
    *("run", "figure", "data", "words", "preset", "arch", "ln_position", "weight_init", "compute_dtype", "optimizer", "lr"),
    *("schedule", "warmup_updates", "seed", "updates", "max_update", "valid_loss", "best_valid_loss", "unigram_loss", "state"),
    *("diverged_at", "wall_seconds", "tokens_per_sample", "max_tokens", "device", "torch", "fairseq", "commit"),
)
CAPTIONS = {
    "valid_loss": "Validation loss against updates (figure 5a); dashed: what knowing the subwords' frequencies alone gives",
    "finetuning": "MRPC and RTE against pre-training updates (figures 5b, 5c), 95 % intervals; dashed: the majority class",
}
FREQUENCIES = "subwords' frequencies alone"
ROUNDING = 0.0501  # fairseq logs percent with one decimal


class Finetuning(NamedTuple):
    """A fine-tuning after its last epoch. ``run``: the pre-training's Run; ``rows``: of class 0 and 1 in valid.

    ``accuracy`` and ``f1`` (of class 1) are in percent, NaN where it diverged.
    """

    run: object
    task: str
    updates: int
    batch_size: int
    lr: str
    epochs: int
    seed: int
    rows: tuple
    accuracy: float
    f1: float

    @property
    def cell(self):
        """What the search is over: batch size, rate and epochs."""
        return self.batch_size, self.lr, self.epochs

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

    ``stuck``: its fine-tunings that give one answer for every row; ``searched``: cells with every seed; ``left_out``: the
    other cells with why.
    """

    name: str
    task: str
    updates: int
    cell: tuple
    count: int
    accuracy: Estimate
    f1: Estimate
    stuck: int
    searched: int
    left_out: list


class Race(NamedTuple):
    """When a Pre-LN run has the final loss of a Post-LN run of the same seed; ``pre_updates`` is None where it never has.

    ``is_bound``: it had that loss at its first validation already, so that ``pre_updates`` is the most that it needed.
    """

    pre: object
    post: object
    loss: float
    post_updates: int
    pre_updates: float | None
    is_bound: bool


# -- reading and counting --


def read_finetunings(run):
    """The :class:`Finetuning` of every result.tsv of a run, in order of task, update, cell and seed.

    Raises:
        RunFolderError: a result.tsv is damaged.

    """
    found = []
    for path in run.folder.glob("finetune/*/*/result.tsv"):
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
        found.append(
            Finetuning(run=run, task=result["task"], lr=result["lr"], rows=rows, accuracy=scores[0], f1=scores[1], **whole)
        )
    return sorted(found, key=lambda f: (f.task, f.updates, f.batch_size, float(f.lr), f.epochs, f.seed))


def constant(rows, answer):
    """Accuracy and F1 of class 1, in percent, of always answering ``answer``; ``rows``: how many of class 0 and 1."""
    accuracy = 100 * rows[answer] / sum(rows)
    return accuracy, 200 * rows[1] / (2 * rows[1] + rows[0]) if answer else 0.0


def majority(rows):
    """The class with more rows."""
    return int(rows[1] >= rows[0])


def levels(finetunings):
    """A :class:`Level` for each task, run and checkpoint that has a cell with every seed."""
    groups = {}
    for item in finetunings:
        groups.setdefault((item.task, item.run.name, item.updates), []).append(item)
    found = []
    for (task, name, updates), group in groups.items():
        seeds = {(item.run.seed, item.seed) for item in group}
        cells = {}
        for item in group:
            cells.setdefault(item.cell, []).append(item)
        whole = {cell: items for cell, items in cells.items() if not why_left_out(items, seeds)}
        left_out = [f"{cell_name(cell)}: {why_left_out(items, seeds)}" for cell, items in cells.items() if cell not in whole]
        if whole:
            best = max(whole, key=lambda cell: mean([item.accuracy for item in whole[cell]]).value)
            items = whole[best]
            scores = (mean([getattr(item, name) for item in items]) for name in ("accuracy", "f1"))
            stuck = sum(item.one_answer is not None for item in items)
            found.append(Level(name, task, updates, best, len(items), *scores, stuck, len(whole), left_out))
    return found


def why_left_out(items, seeds):
    """Why a cell cannot be chosen: no mean is taken over some of its seeds; "" for one that can."""
    diverged = [str(item.seed) for item in items if math.isnan(item.accuracy)]
    missing = len(seeds) - len(items)
    reasons = [f"seed {', '.join(diverged)} diverged"] if diverged else []
    return ", ".join(reasons + ([f"{missing} of {len(seeds)} seeds not there"] if missing else []))


def reached(points, loss):
    """The update at which a loss curve first has fallen to ``loss``, linear between its points; None if it never has.

    ``points``: pairs (updates, loss) in order. A first point that is that low is taken as it is: an upper bound.
    """
    before = None
    for update, value in points:
        if value <= loss:
            if before is None:
                return float(update)
            return before[0] + (before[1] - loss) / (before[1] - value) * (update - before[0])
        if math.isfinite(value):
            before = update, value
    return None


def is_baseline(run):
    """Whether a Post-LN run is the paper's, with which Pre-LN is compared: one that is fine-tuned."""
    return run.settings["ln_position"] == "post" and bool(set(TASKS.values()) & set(run.settings["figure"].split(",")))


def races(runs, losses):
    """A :class:`Race` for each Pre-LN run and each baseline of its seed; ``losses``: the validations of each run's folder."""
    found = []
    for pre in (run for run in runs if run.settings["ln_position"] == "pre"):
        for post in (run for run in runs if is_baseline(run) and run.seed == pre.seed and not run.diverged):
            finite = [point for point in losses[post.folder] if math.isfinite(point[1])]
            if finite and losses[pre.folder]:
                updates, loss = finite[-1]
                at = reached(losses[pre.folder], loss)
                found.append(Race(pre, post, loss, updates, at, at == losses[pre.folder][0][0]))
    return found


def results(runs, losses):
    """A row of results.tsv for each run, as a list of texts."""
    rows = []
    for run in runs:
        finite = [loss for _, loss in losses[run.folder] if math.isfinite(loss)]
        row = {name: run.settings.get(name) for name in COLUMNS}
        row |= {name: run.environment.get(name) for name in ("device", "torch", "fairseq")}
        row |= {
            "updates": updates_of(run, losses),
            "valid_loss": finite[-1] if finite else None,
            "best_valid_loss": min(finite, default=None),
            "state": tables.state(run),
            "diverged_at": run.diverged and run.diverged.update,
            "wall_seconds": run.wall_seconds,
            "commit": tables.commit(run.environment),
        }
        rows.append([tables.text(row[name]) for name in COLUMNS])
    return rows


def updates_of(run, losses):
    """How many updates the log of a run tells of."""
    return max([run.updates, *(update for update, _ in losses[run.folder])])


# -- the report --


def page(runs):
    """The text of RESULTS.md, its figures as a list of Drawing, and the tables' files: name -> bytes.

    Raises:
        RunFolderError: a result.tsv is damaged.

    """
    losses = {run.folder: read_validations(run.folder / "train.log") for run in runs}
    finetunings = [item for run in runs for item in read_finetunings(run)]
    worth = levels(finetunings)
    drawings = drawings_of(runs, losses, finetunings, worth)
    files = {
        "results.tsv": tsv(COLUMNS, results(runs, losses)),
        "finetunings.tsv": tsv(("run", "pretraining_seed", *RESULT, "one_answer"), map(finetuning_row, finetunings)),
    }
    return markdown(runs, losses, finetunings, worth, drawings), drawings, files


def tsv(columns, rows):
    """A table as the bytes of a file."""
    return "".join("\t".join(row) + "\n" for row in [columns, *rows]).encode()


def finetuning_row(item):
    """The row of a fine-tuning in finetunings.tsv."""
    values_of = [item.run.name, item.run.seed, item.task, item.updates, *item.cell, item.seed, *item.rows]
    values_of += [None if math.isnan(score) else score for score in (item.accuracy, item.f1)]
    return [tables.text(value) for value in [*values_of, item.one_answer]]


def drawings_of(runs, losses, finetunings, worth):
    """The figures of which there is something to draw."""
    found = []
    if curves := loss_curves(runs, losses):
        unigram = sorted({float(run.settings["unigram_loss"]) for run in runs if run.settings.get("unigram_loss")})
        arguments = (curves, "validation loss (base 2, masked subwords)", unigram, FREQUENCIES)
        found.append(Drawing("valid_loss", CAPTIONS["valid_loss"], runs, "loss_by_update", arguments))
    panels = []
    for task, measure in MEASURES:
        of_task = [level for level in worth if level.task == task]
        if of_task:
            rows = next(item.rows for item in finetunings if item.task == task)
            line = constant(rows, majority(rows))[measure == "f1"]
            label = f"{task}, {MEASURE_NAMES[measure]} (%)"
            panels.append((label, [(level.name, level.updates, getattr(level, measure)) for level in of_task], line))
    if panels:
        labels = {run.name: run.short_name for run in runs}
        arguments = (panels, labels, "majority class")
        found.append(Drawing("finetuning", CAPTIONS["finetuning"], runs, "estimates_by_update", arguments))
    return found


def loss_curves(runs, losses):
    """Validation loss against the update; a diverged run ends at the update of its divergence."""
    curves = []
    for curve, run in ((curve, run) for run in runs for curve in tables.curves([run], lambda run: losses[run.folder])):
        label = tables.legend_label(run.short_name, tables.by_name(runs)[run.name])
        end = curve.end and (run.diverged.update, curve.end[1])
        curves.append(curve._replace(label=label, end=end))
    return curves


def markdown(runs, losses, finetunings, worth, drawings):
    """The text of RESULTS.md."""
    raced = races(runs, losses)
    parts = [
        heading(runs),
        warnings(runs, losses),
        what_was_run(runs),
        table_of_runs(runs, losses),
        who_is_faster(raced),
        beside_the_papers(runs, losses, raced, worth),
        *(table_of_task(task, runs, finetunings, worth) for task in TASKS),
        one_answer_for_all(finetunings),
        figures(drawings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(runs):
    """Title and origin; the size of the text stands in the first line."""
    data, presets = (", ".join(values(runs, name)) for name in ("data", "preset"))
    title = f"# Figure 5 (BERT): {data}, {words_text(runs)}, preset {presets}"
    return f"{title}\n\nWritten by `fairseq-ln report` from the run folders; a change here is lost at the next report."


def words_text(runs):
    """How large the text is, beside the paper's."""
    counts = sorted({int(run.settings["words"]) for run in runs if run.settings.get("words", "").isdecimal()})
    if not counts:
        return "text of unknown size against the paper's 3.4B words"
    shown = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    return f"{shown} words of text against the paper's 3.4B ({100 * counts[-1] / PAPER_WORDS:.2g} %)"


def warnings(runs, losses):
    """What a reader must know before any number."""
    lines = []
    unfinished = [named(run) for run in runs if not run.done]
    if unfinished:
        lines.append(f"**Not finished**: {', '.join(unfinished)}. Numbers are of what there is so far.")
    odd = [named(run) for run in runs if run.diverged and run.settings["ln_position"] == "pre"]
    if odd:
        lines.append(f"**Pre-LN diverged**, which is not expected: {', '.join(odd)}.")
    idle = [named(run) for run in runs if learned_nothing(run, losses)]
    if idle:
        lines.append(
            f"**No better than the subwords' frequencies**: {', '.join(idle)}. The last validation loss is not below what a "
            "model has that knows how frequent each subword is, and nothing else."
        )
    for name, what in (("data", "texts"), ("words", "sizes of the text"), ("preset", "presets")):
        found = distinct(run.settings.get(name) or "unknown" for run in runs)
        if len(found) > 1:
            lines.append(f"**Different {what}** ({', '.join(found)}): such runs cannot be compared.")
    return "\n\n".join(f"> {line}" for line in lines)


def learned_nothing(run, losses):
    """Whether the last validation loss is not below that of the subwords' frequencies."""
    finite = [loss for _, loss in losses[run.folder] if math.isfinite(loss)]
    level = run.settings.get("unigram_loss")
    return bool(finite and level) and finite[-1] >= float(level)


def what_was_run(runs):
    """Data, code, versions, device, command, and the settings that all runs share."""
    states = [tables.state(run) for run in runs]
    count_of_states = ", ".join(f"{states.count(state)} {state}" for state in distinct(states))
    lines = [
        f"- runs: {len(tables.by_name(runs))}, with their seeds {len(runs)}: {count_of_states}",
        f"- text: {', '.join(f'`{name}`' for name in values(runs, 'data'))}, {words_text(runs)}",
        *trained_with(runs),
    ]
    shared, _ = tables.split_settings(runs)
    text = "## What was run\n\n" + "\n".join(lines)
    text += "\n\nSettings of all runs: " + ", ".join(f"{name} {value}" for name, value in shared.items()) + "."
    return text + first_command(runs)


def table_of_runs(runs, losses):
    """The table of all pre-trainings."""
    _, differing = tables.split_settings(runs)
    header = ["run", "seed", *differing, "state", "updates", "last validation loss", "best", "perplexity (2^loss)"]
    header += ["wall time", "diverged at update"]
    rows = []
    for run in runs:
        finite = [loss for _, loss in losses[run.folder] if math.isfinite(loss)]
        last, best = (finite[-1], min(finite)) if finite else (None, None)
        rows.append(
            [
                *(run.name, run.seed, *(run.settings.get(name) for name in differing), tables.state(run)),
                *(f"{updates_of(run, losses):,}", decimals(last, 3), decimals(best, 3)),
                *(decimals(last and perplexity(last), 1), duration(run.wall_seconds)),
                run.diverged and run.diverged.update,
            ]
        )
    unigram = distinct(run.settings.get("unigram_loss") for run in runs if run.settings.get("unigram_loss"))
    text = "Validation loss is fairseq's: bits a masked subword, on the same masked positions in every run of a seed."
    if unigram:
        text += f" Knowing the subwords' frequencies alone gives about {', '.join(unigram)}."
    notes = {run.name: run.settings["note"] for run in runs if run.settings.get("note")}
    text += "".join(f"\n- {name}: {note}" if i else f"\n\n- {name}: {note}" for i, (name, note) in enumerate(notes.items()))
    return f"## Pre-training\n\n{grid(header, rows)}\n\n{text}"


def who_is_faster(raced):
    """After how many updates Pre-LN has Post-LN's final loss."""
    if not raced:
        return ""
    header = ["Pre-LN", "Post-LN", "seed", "Post-LN's final loss", "its updates", "Pre-LN has it at update", "updates saved"]
    rows = [
        [
            *(race.pre.name, race.post.name, race.pre.seed, decimals(race.loss, 3), f"{race.post_updates:,}"),
            *(pre_updates(race), saving(race)),
        ]
        for race in raced
    ]
    text = "Between two validations the loss is taken as linear. Updates saved: of Post-LN's."
    return f"## Updates to Post-LN's final loss\n\n{grid(header, rows)}\n\n{text}"


def pre_updates(race):
    """The updates that Pre-LN needed, in words."""
    if race.pre_updates is None:
        return "never"
    return f"{'at most ' if race.is_bound else ''}{race.pre_updates:,.0f}"


def saving(race):
    """How many of Post-LN's updates Pre-LN saves, in percent."""
    if race.pre_updates is None:
        return None
    return f"{'at least ' if race.is_bound else ''}{100 * (1 - race.pre_updates / race.post_updates):.1f} %"


def beside_the_papers(runs, losses, raced, worth):
    """The paper's numbers and ours."""
    paper_saving = 100 * (1 - PAPER_UPDATES["pre"] / PAPER_UPDATES["post"])
    rows = [["words of text", "3.4B", words_only(runs)]]
    rows.append(["model", "BERT base (12 layers, 768, 12 heads)", ", ".join(values(runs, "arch"))])
    for race in raced:
        of_seed = f", seed {race.pre.seed}" if len(raced) > 1 else ""
        rows += [
            [f"Post-LN's updates{of_seed}", f"{PAPER_UPDATES['post']:,}", f"{race.post_updates:,}"],
            [f"its validation loss{of_seed}", f"about {PAPER_LOSS} (base not told)", f"{race.loss:.3f} (base 2)"],
            [f"updates at which Pre-LN has it{of_seed}", f"{PAPER_UPDATES['pre']:,}", pre_updates(race)],
            [f"updates saved{of_seed}", f"{paper_saving:.1f} %", saving(race)],
        ]
        speed = None
        if race.pre_updates:
            speed = f"{'at least ' if race.is_bound else ''}{100 * (race.post_updates / race.pre_updates - 1):.0f} %"
        rows.append([f"speed-up, updates of Post-LN / Pre-LN - 1{of_seed}", "40 %", speed])
    for run in runs:
        if run.settings["ln_position"] == "post" and not is_baseline(run):
            last = next((loss for _, loss in reversed(losses[run.folder]) if math.isfinite(loss)), None)
            end = tables.state(run) + ("" if last is None else f", last validation loss {last:.3f}")
            rows.append([f"Post-LN at lr {run.settings['lr']}, seed {run.seed}", "diverged", end])
    for task in TASKS:
        ahead = [f"{pre.updates:,}: {difference:+.1f}" for pre, difference in leads(task, runs, worth)]
        rows.append([f"{task}, accuracy of Pre-LN less Post-LN's by updates", "Pre-LN ahead", "; ".join(ahead)])
    other = not_the_papers(runs)
    if other:
        text = f"**No reproduction**: {'; '.join(other)}."
    else:
        text = "Preset paper, on about as much text as the paper's; its text itself is not to be had."
    return "\n\n".join(["## Ours beside the paper's", text, grid(["what", "paper", "ours"], rows), *at_one_rate(runs, losses)])


def at_one_rate(runs, losses):
    """A sentence for each finished Pre-LN run and the Post-LN run of its rate and seed: which ends lower, and what follows."""
    ends = {
        (run.settings["ln_position"], run.settings["lr"], run.seed): losses[run.folder][-1][1]
        for run in runs
        if run.done and not run.diverged and losses[run.folder]
    }
    sentences = []
    for (position, lr, seed), pre in ends.items():
        post = ends.get(("post", lr, seed))
        if position != "pre" or post is None:
            continue
        sentence = f"At one rate, {lr}, Pre-LN ends at {pre:.3f} and Post-LN at {post:.3f}, seed {seed}"
        if post < pre:
            sentence += ": Post-LN did not need the lower rate here, and the updates saved are the rate's, not the position's"
        sentences.append(f"{sentence}.")
    return sentences


def not_the_papers(runs):
    """What makes these runs another experiment than the paper's, as a list of phrases; [] for none."""
    presets = [name for name in values(runs, "preset") if name != "paper"]
    phrases = [f"preset {', '.join(presets)} ({', '.join(values(runs, 'arch'))})"] if presets else []
    words = [run.settings.get("words", "") for run in runs]
    if not all(count.isdecimal() and int(count) >= 0.9 * PAPER_WORDS for count in words):
        phrases.append(words_text(runs))
    return phrases


def words_only(runs):
    """The number of words, with thousands' commas; "" where no run tells."""
    found = distinct(run.settings["words"] for run in runs if run.settings.get("words", "").isdecimal())
    return ", ".join(f"{int(words):,}" for words in found)


def leads(task, runs, worth):
    """Pairs of a Pre-LN :class:`Level` and its mean accuracy less the baseline's of the same updates."""
    positions = {run.name: run.settings["ln_position"] for run in runs}
    of_task = [level for level in worth if level.task == task]
    return [
        (pre, pre.accuracy.value - post.accuracy.value)
        for pre in of_task
        for post in of_task
        if (positions[pre.name], positions[post.name]) == ("pre", "post") and pre.updates == post.updates
    ]


def table_of_task(task, runs, finetunings, worth):
    """Accuracy and F1 of every checkpoint on a task, at the best cell of the search."""
    of_task = [item for item in finetunings if item.task == task]
    if not of_task:
        return ""
    rows_of_class = of_task[0].rows
    answer = majority(rows_of_class)
    accuracy, f1 = constant(rows_of_class, answer)
    header = ["run", "pre-training updates", "batch, lr, epochs", "seeds", "accuracy (%)", "F1 of class 1 (%)"]
    header += ["one answer for all", "cells searched", "left out"]
    rows = [
        [
            *(level.name, f"{level.updates:,}", cell_name(level.cell), level.count),
            *(interval(level.accuracy, 1), interval(level.f1, 1), f"{level.stuck} of {level.count}"),
            *(level.searched, "; ".join(level.left_out)),
        ]
        for level in worth
        if level.task == task
    ]
    searched = {name: distinct(str(getattr(item, name)) for item in of_task) for name in SEARCHED}
    seeds = sorted({item.seed for item in of_task})
    search = ", ".join(f"{words} {'/'.join(searched[name])}" for name, words in SEARCHED.items())
    text = (
        f"On the {sum(rows_of_class)} rows of dev, after the last epoch. Always answering class {answer}, the majority: accuracy "
        f"{accuracy:.1f}, F1 {f1:.1f}. Searched: {search}, {count(len(seeds), 'seed')} each "
        f"({', '.join(map(str, seeds))}); shown is the cell of the best mean accuracy, with the 95 % t-interval over its seeds, "
        "none dropped. The search is on the same rows, as in the paper, so the best cell is a little too good. Every "
        "fine-tuning is in finetunings.tsv."
    )
    return f"## {task} (figure {TASKS[task]})\n\n{text}\n\n{grid(header, rows)}"


def cell_name(cell):
    """``32, 1e-4, 3``."""
    return ", ".join(map(str, cell))


def one_answer_for_all(finetunings):
    """The fine-tunings that learned nothing but one answer, counted and named."""
    if not finetunings:
        return ""
    stuck = [item for item in finetunings if item.one_answer is not None]
    text = f"{len(stuck)} of {len(finetunings)} fine-tunings give the same answer for every row of dev"
    text += ", as far as scores with one decimal tell"
    groups = {}
    for item in stuck:
        kind = "the majority class" if item.one_answer == majority(item.rows) else "the minority class"
        key = f"{item.task}, {named(item.run)}, update {item.updates:,}, {kind}"
        groups.setdefault(key, {}).setdefault(item.cell, []).append(item.seed)
    lines = [
        f"- {key}: " + "; ".join(f"{cell_name(cell)} with seed {', '.join(map(str, seeds))}" for cell, seeds in cells.items())
        for key, cells in groups.items()
    ]
    return f"## Stuck at one class\n\n{text}" + (" (batch, lr, epochs):\n\n" + "\n".join(lines) if lines else ".")


def figures(drawings):
    """The figures, and which there is nothing to draw of."""
    missing = [caption for name, caption in CAPTIONS.items() if name not in {drawing.name for drawing in drawings}]
    return "\n\n".join(["## Figures", *map(shown, drawings), *(f"{caption}: nothing to draw yet." for caption in missing)])
