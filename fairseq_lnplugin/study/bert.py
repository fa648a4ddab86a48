"""The report of figure 5: masked-LM pre-training with Pre-LN and Post-LN, and what its checkpoints are worth on MRPC and RTE.

From the run folders of ``recipes/bert.sh``: all validations of a run by update (pretraining.py), and its fine-tunings, one
result.tsv in each ``finetune/<TASK>/<name>/`` (finetuning.py). The paper (section 4.2) compares how many updates each
position needs for the same validation loss, and the accuracy of fine-tuned checkpoints at equal updates (appendix A.3: a
search over batch size, rate and epochs, six seeds, 95 % interval on the validation set). bert_claims.py judges, here it
becomes Markdown.
"""

import math

from fairseq_lnplugin.study import tables
from fairseq_lnplugin.study.bert_claims import RULES, claims, speed_up_text, updates_text
from fairseq_lnplugin.study.finetuning import (
    RESULT,
    TASKS,
    by_chance,
    cell_name,
    constant,
    leads,
    levels,
    majority,
    read_finetunings,
)
from fairseq_lnplugin.study.page import (
    Drawing,
    as_warnings,
    claim_paragraph,
    first_command,
    of_every_study,
    perplexity,
    scaled_lengths,
    shown,
    trained_with,
    values,
)
from fairseq_lnplugin.study.pretraining import LEARNED, pairs, races, read_pretraining
from fairseq_lnplugin.study.wording import count, decimals, distinct, duration, grid, interval, named

#: Wikipedia and BookCorpus (section 4.1).
PAPER_WORDS = 3_400_000_000
#: Lengths of Devlin et al. 2019, whose settings the paper follows, and what they count.
DEVLIN = {
    "tokens_per_sample": (512, "subwords a block"),
    "max_tokens": (256 * 512, "tokens an update"),
    "max_update": (1_000_000, "updates"),
}
#: Updates after which each position has about the same validation loss (section 4.2, whose text swaps the two numbers).
PAPER_UPDATES = {"post": 700_000, "pre": 500_000}
PAPER_LOSS = 1.69
#: What is shown of each task; the paper shows accuracies only.
MEASURES = {"MRPC": ("accuracy", "f1"), "RTE": ("accuracy",)}
#: What the search is over, in words.
SEARCHED = {"batch_size": "batch", "lr": "lr", "epochs": "epochs"}
MEASURE_NAMES = {"accuracy": "accuracy", "f1": "F1 of class 1"}
COLUMNS = (
    *("run", "figure", "data", "words", "preset", "arch", "ln_position", "weight_init", "compute_dtype", "optimizer", "lr"),
    *("schedule", "warmup_updates", "seed", "updates", "max_update", "valid_loss", "best_valid_loss", "unigram_loss", "state"),
    *("diverged_at", "wall_seconds", "tokens_per_sample", "max_tokens", "device", "torch", "fairseq", "commit"),
    "command",
)


def page(runs, plan, to_go):
    """The text of RESULTS.md, its figures as a list of Drawing, and the tables' files: name -> bytes.

    ``plan``: the rows of a plan, by which runs that are not there are named.

    Raises:
        RunFolderError: a result.tsv is damaged.

    """
    pretrainings = [read_pretraining(run) for run in runs]
    finetunings = [item for p in pretrainings for item in read_finetunings(p)]
    worth = levels(finetunings)
    drawings = {"5a": loss_drawing(pretrainings)} | {TASKS[task]: task_drawing(task, runs, worth) for task in TASKS}
    parts = [
        heading(runs),
        warnings(pretrainings, plan),
        claims_section(claims(pretrainings, worth, plan, to_go)),
        loss_section(pretrainings, drawings["5a"]),
        *(task_section(task, finetunings, worth, drawings[TASKS[task]]) for task in TASKS),
        one_answer_for_all(finetunings),
        missing_section(pretrainings, finetunings, plan, to_go),
        table_of_runs(pretrainings),
        what_was_run(pretrainings),
    ]
    files = {
        "results.tsv": tsv(COLUMNS, map(result_row, pretrainings)),
        "finetunings.tsv": tsv(("run", "pretraining_seed", *RESULT, "one_answer", "command"), map(finetuning_row, finetunings)),
    }
    return "\n\n".join(filter(None, parts)) + "\n", list(filter(None, drawings.values())), files


# -- Tables' files --


def tsv(columns, rows):
    """A table as the bytes of a file."""
    return "".join("\t".join(row) + "\n" for row in [columns, *rows]).encode()


def result_row(p):
    """The row of a pre-training in results.tsv, as a list of texts."""
    row = {name: p.run.settings.get(name) for name in COLUMNS}
    row |= {name: p.run.environment.get(name) for name in ("device", "torch", "fairseq")}
    row |= {
        "updates": p.updates,
        "valid_loss": p.last,
        "best_valid_loss": p.best,
        "state": p.state,
        "diverged_at": p.run.diverged and p.run.diverged.update,
        "wall_seconds": p.run.wall_seconds,
        "commit": tables.commit(p.run.environment),
        "command": p.run.command,
    }
    return [tables.text(row[name]) for name in COLUMNS]


def finetuning_row(item):
    """The row of a fine-tuning in finetunings.tsv, as a list of texts."""
    run = item.pretraining.run
    values_of = [run.name, run.seed, item.task, item.updates, *item.cell, item.seed, *item.rows]
    values_of += [None if math.isnan(score) else score for score in (item.accuracy, item.f1)]
    return [tables.text(value) for value in [*values_of, item.one_answer, item.command]]


# -- Before the figures --


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
    sizes = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    return f"{sizes} words of text against the paper's 3.4B ({100 * counts[-1] / PAPER_WORDS:.2g} %)"


def warnings(pretrainings, plan):
    """What a reader must know before any number."""
    runs, lines = [p.run for p in pretrainings], []
    if other := not_the_papers(runs):
        lines.append(f"**No reproduction**: {'; '.join(other)}.")
    idle = [named(p.run) for p in pretrainings if p.run.trained and p.last is not None and not p.has_learned(p.last)]
    if idle:
        lines.append(
            f"**Not learned enough**: {', '.join(idle)}. The last validation loss is not {LEARNED:g} bit below what a model has "
            "that knows how frequent each subword is, and nothing else."
        )
    lines += scaled_lengths(runs, plan)
    unfinished = [named(p.run) for p in pretrainings if not p.run.done]
    if unfinished:
        lines.append(f"**{len(unfinished)} of {count(len(runs), 'run')} not finished**: {', '.join(unfinished)}.")
    return as_warnings([*lines, *of_every_study(runs, plan, data="texts", words="sizes of the text", preset="presets")])


def not_the_papers(runs):
    """What makes these runs another experiment than the paper's, as a list of phrases; [] for none."""
    presets = [name for name in values(runs, "preset") if name != "paper"]
    archs = f"{', '.join(values(runs, 'arch'))}; the paper: BERT base, 12 layers, 768, 12 heads"
    phrases = [f"preset {', '.join(presets)} ({archs})"] if presets else []
    words = [run.settings.get("words", "") for run in runs]
    if not all(count.isdecimal() and int(count) >= 0.9 * PAPER_WORDS for count in words):
        phrases.append(words_text(runs))
    for name, (papers, unit) in DEVLIN.items():
        found = sorted({int(value) for run in runs if (value := run.settings.get(name, "")).isdecimal()} - {papers})
        if found:
            phrases.append(f"{' and '.join(f'{value:,}' for value in found)} {unit}, Devlin et al. {papers:,}")
    return phrases


def claims_section(found):
    """A paragraph for each claim of the paper, and the rules."""
    parts = [
        "## The paper's claims, here",
        "Each claim of figure 5 that these runs can speak to, and whether it holds with this text, size and length. Losses are "
        "validation losses in base 2. Differences are Pre-LN's mean accuracy on dev less Post-LN's, in points, with their 95 % "
        "t-interval over seeds. That interval does not know chance in the choice of the rows of dev.",
    ]
    parts += [claim_paragraph(claim, claim.notes) for claim in found]
    return "\n\n".join([*parts, "What the words mean:\n\n" + "\n".join(f"- {rule}" for rule in RULES)])


# -- Figure 5a --


def loss_drawing(pretrainings):
    """Validation loss against updates, or None where there is nothing to draw."""
    curves = loss_curves(pretrainings)
    frequencies = sorted({p.unigram_loss for p in pretrainings})
    caption = "Validation loss against updates; dashed: what knowing the subwords' frequencies alone gives"
    arguments = (curves, "validation loss (base 2, masked subwords)", frequencies, "subwords' frequencies alone")
    return Drawing("figure5a", caption, [p.run for p in pretrainings], "loss_by_update", arguments) if curves else None


def loss_curves(pretrainings):
    """Validation loss against the update; a diverged run ends at the update of its divergence."""
    curves, groups = [], tables.by_name([p.run for p in pretrainings])
    for p in pretrainings:
        label = tables.legend_label(p.run.short_name, groups[p.run.name])
        for curve in tables.curves([p.run], lambda run, losses=p.losses: losses):
            end = curve.end and (p.run.diverged.update, curve.end[1])
            curves.append(curve._replace(label=label, end=end))
    return curves


def loss_section(pretrainings, drawing):
    """The loss curves, and after how many updates Pre-LN has each Post-LN run's final loss, beside the paper's numbers."""
    header = [
        "Pre-LN",
        "Post-LN",
        "seed",
        "Post-LN's final loss",
        "its updates",
        "Pre-LN has it at update",
        "speed-up",
        "remarks",
    ]
    updates = PAPER_UPDATES["post"], PAPER_UPDATES["pre"]
    swapped = "its text prints the two numbers the other way round"
    paper = [f"about {PAPER_LOSS} (base not told)", *(f"{number:,}" for number in updates)]
    rows = [
        ["the paper's, lr 3e-4", "the paper's, lr 1e-4", None, *paper, f"{100 * (updates[0] / updates[1] - 1):.0f} %", swapped]
    ]
    found = {(race.pre.run.folder, race.post.run.folder): race for race in races(pretrainings)}
    for pre, post in pairs(pretrainings):
        race = found.get((pre.run.folder, post.run.folder))
        rows.append([pre.run.short_name, post.run.short_name, pre.run.seed, *(race_cells(race) if race else no_race(pre, post))])
    text = (
        "Speed-up: Post-LN's updates / Pre-LN's, less 1. Between two validations the loss is taken as linear. Both runs of a row "
        "have the same seed, and so the same masked positions in validation."
    )
    return "\n\n".join(["## Figure 5a: validation loss of the pre-training", picture(drawing), grid(header, rows), text])


def race_cells(race):
    """The cells of a Race; no speed-up is told against a run that has not learned."""
    reached = f"not by {race.pre.updates:,}" if race.pre_updates is None else updates_text(race)
    speed_up = speed_up_text(race) if race.pre_updates and race.can_be_judged else None
    remark = None if race.can_be_judged else "Post-LN has not learned"
    return [decimals(race.loss, 3), f"{race.post_updates:,}", reached, speed_up, remark]


def no_race(pre, post):
    """The cells of a pair of which one is not trained yet, or Post-LN diverged."""
    if pre.run.trained and post.run.trained:
        return [None, f"{post.updates:,}", None, None, "Post-LN diverged" if post.run.diverged else "Post-LN has no validation"]
    return ["not yet", None, "not yet", None, "; ".join(f"{named(p.run)} not finished" for p in (pre, post) if not p.run.trained)]


def picture(drawing):
    """A figure in Markdown, or that there is none."""
    return shown(drawing) if drawing else "Nothing to draw yet."


# -- Figures 5b and 5c --


def task_drawing(task, runs, worth):
    """Scores of a task against the pre-training's updates, or None where there is nothing to draw."""
    of_task = [level for level in worth if level.task == task]
    if not of_task:
        return None
    panels = []
    for measure in MEASURES[task]:
        line = constant(rows := of_task[0].items[0].rows, majority(rows))[measure == "f1"]
        points = [(level.name, level.updates, getattr(level, measure)) for level in of_task]
        panels.append((f"{task}, {MEASURE_NAMES[measure]} (%)", points, line))
    caption = f"{task} against pre-training updates, with 95 % intervals; dashed: the majority class"
    arguments = (panels, {run.name: run.short_name for run in runs}, "majority class")
    return Drawing(f"figure{TASKS[task]}", caption, runs, "estimates_by_update", arguments)


def task_section(task, finetunings, worth, drawing):
    """Accuracy and F1 of every checkpoint on a task, at the best cell of the search, and Pre-LN's lead."""
    of_task = [item for item in finetunings if item.task == task]
    if not of_task:
        return ""
    parts = [f"## Figure {TASKS[task]}: {task}", picture(drawing), how_finetuned(of_task)]
    if shown_levels := [level for level in worth if level.task == task]:
        parts.append(table_of_levels(shown_levels))
    if found := leads(task, worth):
        header = ["pre-training updates", "Pre-LN", "Post-LN", "Pre-LN's accuracy less Post-LN's (points)", "remarks"]
        rows = [
            [
                f"{lead.pre.updates:,}",
                lead.pre.short_name,
                lead.post.short_name,
                interval(lead.difference, 2, "+"),
                "; ".join(lead.faults),
            ]
            for lead in found
        ]
        parts += [grid(header, rows), "The difference is between fine-tunings of equal seeds."]
    return "\n\n".join(parts)


def how_finetuned(of_task):
    """What the numbers of a task are of, and what they are to be held against."""
    rows = of_task[0].rows
    answer = majority(rows)
    accuracy, f1 = constant(rows, answer)
    seeds = sorted({item.seed for item in of_task})
    values_of = {name: distinct(str(getattr(item, name)) for item in of_task) for name in SEARCHED}
    settings = ", ".join(f"{words} {'/'.join(values_of[name])}" for name, words in SEARCHED.items())
    settings += f"; {count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), none dropped"
    sentences = [
        f"On the {sum(rows)} rows of dev, after the last epoch, of finished runs. Always answering class {answer}, the majority: "
        f"accuracy {accuracy:.1f}, F1 {f1:.1f}. By chance in the choice of the rows its accuracy may be up to "
        f"{by_chance(rows):.1f} (95 % Wilson interval); only a higher one is called better than the majority class's."
    ]
    if len({item.cell for item in of_task}) > 1:
        sentences += [
            f"Searched: {settings}. Shown is the cell of the best mean accuracy. The search is on the same rows, as in the "
            "paper, so the best cell's accuracy is a little too good."
        ]
    else:
        sentences.append(f"Fine-tuned with {settings}; no search.")
    if len({item.pretraining.run.seed for item in of_task}) > 1:
        sentences.append("Each pre-training seed counts with its mean; the 95 % t-intervals are over these.")
    else:
        sentences.append(
            "The 95 % t-intervals are over the fine-tunings of one pre-training seed: no spread between pre-trainings known."
        )
    sentences.append("They know chance in the seeds, not in the choice of the rows. Every fine-tuning is in finetunings.tsv.")
    return " ".join(sentences)


def table_of_levels(of_task):
    """A row for each checkpoint."""
    header = ["run", "pre-training updates", "batch, lr, epochs", "pre-trainings", "fine-tunings", "accuracy (%)"]
    header += ["F1 of class 1 (%)", "better than the majority class's", "one answer for all", "cells searched", "left out"]
    rows = [
        [
            *(level.short_name, f"{level.updates:,}", cell_name(level.cell), level.pretrainings, len(level.items)),
            *(interval(level.accuracy, 1), interval(level.f1, 1), "yes" if level.beats_majority else "no"),
            *(f"{level.stuck} of {len(level.items)}", level.searched, "; ".join(level.left_out)),
        ]
        for level in of_task
    ]
    return grid(header, rows)


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
        key = f"{item.task}, {named(item.pretraining.run)}, update {item.updates:,}, {kind}"
        groups.setdefault(key, {}).setdefault(item.cell, []).append(item.seed)
    lines = [
        f"- {key}: " + "; ".join(f"{cell_name(cell)} with seed {', '.join(map(str, seeds))}" for cell, seeds in cells.items())
        for key, cells in groups.items()
    ]
    return f"## Stuck at one class\n\n{text}" + (" (batch, lr, epochs):\n\n" + "\n".join(lines) if lines else ".")


# -- What the figures rest on --


def missing_section(pretrainings, finetunings, plan, to_go):
    """What is not trained, not finished or not fine-tuned; nothing where there is no plan and all is done."""
    lines = [f"- {name}: not trained" for name in to_go]
    for p in pretrainings:
        if not p.run.trained:
            limit = p.run.settings.get("max_update", "")
            lines.append(f"- {named(p.run)}: {p.updates:,}{f' of {int(limit):,}' if limit else ''} updates trained")
        elif not p.run.done:
            made = sum(item.pretraining is p for item in finetunings)
            lines.append(f"- {named(p.run)}: pre-trained, {count(made, 'fine-tuning')} so far")
    if not lines and not plan:
        return ""
    return "## Missing\n\n" + ("\n".join(lines) or f"Nothing: all {count(len(plan), 'run')} of the plan are finished.")


def table_of_runs(pretrainings):
    """The table of all pre-trainings."""
    runs = [p.run for p in pretrainings]
    _, differing = tables.split_settings(runs)
    header = ["run", "seed", *differing, "state", "updates", "last validation loss", "best", "perplexity (2^loss)"]
    header += ["bits below the frequencies", "wall time", "diverged at update"]
    rows = [
        [
            *(p.run.name, p.run.seed, *(p.run.settings.get(name) for name in differing), p.state, f"{p.updates:,}"),
            *(decimals(p.last, 3), decimals(p.best, 3)),
            *(decimals(p.last and perplexity(p.last), 1), decimals(p.last and p.unigram_loss - p.last, 3)),
            *(duration(p.run.wall_seconds), p.run.diverged and p.run.diverged.update),
        ]
        for p in pretrainings
    ]
    text = (
        "Validation loss is fairseq's: bits a masked subword, on the same masked positions in every run of a seed. Knowing the "
        f"subwords' frequencies alone gives about {', '.join(values(runs, 'unigram_loss'))}."
    )
    notes = {run.name: run.settings["note"] for run in runs if run.settings.get("note")}
    parts = [f"## Every run and seed ({words_text(runs)})", grid(header, rows), text]
    if notes:
        parts.append("Notes of the recipe:\n\n" + "\n".join(f"- {name}: {note}" for name, note in notes.items()))
    return "\n\n".join(parts)


def what_was_run(pretrainings):
    """Data, code, versions, device, command, and the settings that all runs share."""
    runs, states = [p.run for p in pretrainings], [p.state for p in pretrainings]
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
