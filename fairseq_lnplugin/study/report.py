"""Tables and figures of a study's run folders: RESULTS.md, results.tsv and figures, from the run folders alone.

    fairseq-ln report runs/quickstart
    fairseq-ln report runs/iwslt14-cpu --out results/iwslt14-cpu

The same run folders give the same files, byte for byte. Runs that diverged or are not finished are shown as such.
"""

import logging
import math
import re
from pathlib import Path

from fairseq_lnplugin.study import tables
from fairseq_lnplugin.study.run_folder import RunFolderError, read_study
from fairseq_lnplugin.whole_file import replacing

VERSIONS = ("python", "torch", "fairseq", "fairseq_lnplugin", "sacrebleu")

#: What each figure shows, for RESULTS.md; the runs that have no curve are named below it.
CAPTIONS = {
    "valid_loss": "Validation loss of every epoch",
    "bleu": "BLEU of every epoch's checkpoint on the first validation sentences",
    "learning_rate": "Learning rate, as logged",
    "grad_norm_first_update": "Gradient norms of the FFN's W1 (fc1) and W2 (fc2) by layer, at the first logged update",
}
MISSING = {
    "valid_loss": "no epoch's end in train.log",
    "bleu": "no epoch scored on the subset test1",
    "learning_rate": "no train_inner line in train.log",
    "grad_norm_first_update": "no norms in checkpoints/grad_norm.tsv",
}


def add_arguments(parser):
    """The flags of ``fairseq-ln report``."""
    parser.add_argument("runs", metavar="RUNS", help="folder of a study, which holds <run>/seed<k>/")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: RUNS itself)")


def run(args):
    """Read the runs, write the report and say on standard output what it is of.

    Raises:
        SystemExit: a run folder cannot be read, or a file cannot be written.

    """
    try:
        runs = read_study(args.runs)
        if all(run.settings["study"] == "bert" for run in runs):
            from fairseq_lnplugin.study import bert  # which words its report with what is here

            write(Path(args.out or args.runs), bert.files(runs))
            print(f"{Path(args.out or args.runs) / 'RESULTS.md'}: {count(len(runs), 'run')} of figure 5")
            return
        curves = curves_of(runs)
        files = {"results.tsv": tables.tsv(tables.results(runs)).encode()}
        files |= draw(runs, curves)
        files["RESULTS.md"] = markdown(runs, curves).encode()  # the last: recipes take it for the report's stamp
        out = args.runs if args.out is None else args.out
        write(Path(out), files)
    except RunFolderError as error:
        raise SystemExit(f"fairseq-ln report: {error}") from None
    unfinished = sum(not run.done for run in runs)
    figures = sum(bool(curves[name]) for name in CAPTIONS)
    state = f" ({unfinished} not finished)" if unfinished else ""
    print(f"{Path(out) / 'RESULTS.md'}: {count(len(runs), 'run')}{state}, {count(figures, 'figure')}")


def curves_of(runs):
    """The curves of each figure by its name; empty where there is nothing to draw."""
    return {
        "valid_loss": tables.valid_loss_curves(runs),
        "bleu": tables.bleu_curves(runs),
        "learning_rate": tables.learning_rate_curves(runs),
        "grad_norm_first_update": tables.grad_norm_curves(runs),
    }


def draw(runs, curves):
    """The figures' files: name -> bytes, None for one without data, whose old files have to go."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq's imports open the root logger to all it says
    try:
        from fairseq_lnplugin.study import plots
    except ImportError as error:
        raise SystemExit(f"fairseq-ln report: the figures need matplotlib ({error}); pip install matplotlib") from None
    style = plots.styles([run.name for run in runs])
    more = {
        "valid_loss": [tables.loss_name(runs)],
        "bleu": [tables.valid500_lines(runs)],
        "learning_rate": [],
        "grad_norm_first_update": [tables.first_updates(runs)],
    }
    files = {}
    for name in CAPTIONS:
        figure = getattr(plots, name)(curves[name], style, *more[name]) if curves[name] else None
        for kind in ("png", "svg"):
            files[f"figures/{name}.{kind}"] = plots.rendered(figure, kind) if figure else None
    return files


def write(folder, files):
    """Write each file whole or not at all; ``files``: name -> bytes, or None for one that must not be there.

    Raises:
        SystemExit: the folder or a file cannot be written.

    """
    path = folder
    try:
        for name, content in files.items():
            path = folder / name
            if content is None:
                path.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                new.write_bytes(content)
    except OSError as error:
        raise SystemExit(
            f"fairseq-ln report: {path} cannot be written ({error.strerror}); give another folder with --out"
        ) from None


# -- RESULTS.md --


def markdown(runs, curves):
    """The text of RESULTS.md."""
    parts = [
        heading(runs),
        warnings(runs),
        what_was_run(runs),
        table_of_runs(runs),
        table_of_seeds(runs),
        beside_the_papers(runs),
        figures(runs, curves),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(runs):
    """Title and origin."""
    studies, data, presets = (values(runs, name) for name in ("study", "data", "preset"))
    pairs = tables.pairs_text([run.settings for run in runs])
    title = f"# {', '.join(studies)}: {', '.join(data)}, {pairs}, preset {', '.join(presets)}"
    return f"{title}\n\nWritten by `fairseq-ln report` from the run folders; a change here is lost at the next report."


def warnings(runs):
    """What a reader must know before any number."""
    lines = []
    if any(tables.made_up(run.settings) for run in runs):
        lines.append(
            "**MADE-UP text**: the corpus `grammar` is sentences of a small grammar. "
            "Its scores say nothing about real language, and compare only with one another."
        )
    unfinished = [named(run) for run in runs if not run.done]
    if unfinished:
        lines.append(
            f"**{len(unfinished)} of {count(len(runs), 'run')} not finished**: {', '.join(unfinished)}. "
            "Their numbers are of the epochs so far."
        )
    odd = [named(run) for run in runs if run.diverged and run.settings["ln_position"] == "pre"]
    if odd:
        lines.append(f"**Pre-LN diverged**, which is not expected: {', '.join(odd)}.")
    for name, what in (("data", "corpora"), ("pairs", "numbers of training pairs"), ("preset", "presets")):
        if len(values(runs, name)) > 1:
            lines.append(f"**Different {what}** ({', '.join(values(runs, name))}): such runs cannot be compared.")
    return "\n\n".join(f"> {line}" for line in lines)


def what_was_run(runs):
    """Data, preset, code, versions, device, command, and the settings that all runs share."""
    states = [tables.state(run) for run in runs]
    lines = [
        f"- study: {', '.join(values(runs, 'study'))}",
        f"- runs: {len(tables.by_name(runs))}, with their seeds {len(runs)}: "
        + ", ".join(f"{states.count(state)} {state}" for state in distinct(states)),
    ]
    items = sorted({item for run in runs for item in run.settings["figure"].split(",") if item})
    if items:
        lines.append(f"- figures of the paper: {', '.join(items)}")
    data = [f"`{name}`" + (" (MADE-UP text)" if name == "grammar" else "") for name in values(runs, "data")]
    lines.append(f"- data: {', '.join(data)}, {tables.pairs_text([run.settings for run in runs])} for training")
    lines.append(f"- preset: {', '.join(values(runs, 'preset'))}")
    lines.append(f"- commit: {by_value(runs, commit)}")
    lines += [f"- {name}: {by_value(runs, lambda run, name=name: known(run, name))}" for name in VERSIONS]
    lines.append(f"- device: {by_value(runs, lambda run: known(run, 'device'))}")
    lines.append(f"- threads: {by_value(runs, lambda run: known(run, 'threads'))}")
    shared, _ = tables.split_settings(runs)
    shared = [f"{name} {value}" for name, value in shared.items() if name not in ("data", "pairs", "preset")]
    text = "## What was run\n\n" + "\n".join(lines)
    if shared:
        text += f"\n\nSettings of {'all runs' if len(runs) > 1 else 'the run'}: {', '.join(shared)}."
    first = next((run for run in runs if run.command), None)
    if first:
        text += f"\n\nThe command of the first run, {named(first)}:\n\n```\n{first.command}\n```"
    return text


def table_of_runs(runs):
    """The table of all runs, with its signatures and remarks."""
    _, differing = tables.split_settings(runs)
    papers = any(run.settings.get("paper_bleu") for run in runs)
    header = ["run", "seed", *differing, "state", "best epoch", "epochs", "updates"]
    header += [f"best validation loss ({tables.loss_name(runs)})", "perplexity (2^nll)", bleu_name(runs), "sacreBLEU"]
    header += ["BLEU, last epoch", "wall time", "diverged at update", *(["paper's BLEU"] if papers else [])]
    rows = []
    for run in runs:
        best, last = run.best, run.last
        score, last_score = run.score(best, tables.TEST), run.score(last, tables.TEST)
        limit = run.settings.get("max_epoch")
        epochs = f"{len(run.epochs)} of {limit}" if limit else len(run.epochs)
        rows.append(
            [
                *(run.name, run.seed, *(run.settings.get(name) for name in differing), tables.state(run)),
                *(best and best.epoch, epochs, run.updates),
                *(best and decimals(best.valid_loss, 3), best and decimals(perplexity(best.valid_nll_loss), 2)),
                *(score and decimals(score.bleu, 2), score and decimals(score.sacrebleu, 2)),
                *(last_score and decimals(last_score.bleu, 2), duration(run.wall_seconds)),
                *(run.diverged and run.diverged.update, *([run.settings.get("paper_bleu")] if papers else [])),
            ]
        )
    parts = [f"## Runs ({tables.pairs_text([run.settings for run in runs])})", grid(header, rows)]
    return "\n\n".join([*parts, *remarks(runs)])


def bleu_name(runs):
    """The column of tokenized BLEU; whether case counts stands in the signatures."""
    cases = {"case:lc" in score.bleu_signature for run in runs for score in run.scores}
    return {(True,): "BLEU (tokenized, lower-case)", (False,): "BLEU (tokenized)"}.get(tuple(cases), "BLEU (tokenized)")


def remarks(runs):
    """What stands under the table of runs: which numbers they are, signatures, and what is missing."""
    parts = [
        "Validation loss is fairseq's, per target token. Perplexity is without smoothing. BLEU and sacreBLEU (on "
        "detokenized text) are of the test set at the epoch of the best validation loss. Wall time is training with "
        "its validations on the device above."
    ]
    signatures = []
    for name, field in (("BLEU", "bleu_signature"), ("sacreBLEU", "sacrebleu_signature")):
        found = distinct(getattr(score, field) for run in runs for score in run.scores if score.subset == tables.TEST)
        signatures += [f"- {name}: `{signature}`" for signature in found]
    if signatures:
        lines = distinct(score.lines for run in runs for score in run.scores if score.subset == tables.TEST)
        note = f"Signatures of the scores on the test set ({', '.join(f'{n:,}' for n in lines)} lines):"
        parts.append(note + "\n\n" + "\n".join(signatures))
    lines = []
    for run in runs:
        if run.diverged:
            message = run.diverged.message or "no message"
            lines.append(f"- {named(run)} diverged at update {run.diverged.update}: {message}")
        if run.done and run.best and not run.score(run.best, tables.TEST):
            lines.append(f"- {named(run)} has no score on the test set at its best epoch, {run.best.epoch}")
    names = [(re.search(r"-warmup(\d+)", run.name), run.settings["warmup_updates"]) for run in runs]
    if any(match and match[1] != warmup_updates for match, warmup_updates in names):
        parts.append("Run names tell the paper's warm-up; what was run here, with this preset, is in warmup_updates.")
    notes = {run.name: run.settings["note"] for run in runs if run.settings.get("note")}
    if lines:
        parts.append("Remarks:\n\n" + "\n".join(lines))
    if notes:
        parts.append("Notes of the recipe:\n\n" + "\n".join(f"- {name}: {note}" for name, note in notes.items()))
    return parts


def table_of_seeds(runs):
    """Means over seeds with their intervals; nothing where every run has one seed."""
    means = tables.seed_means(runs)
    if not means:
        return ""
    loss = f"best validation loss ({tables.loss_name(runs)})"
    header = ["run", "finished seeds", loss, bleu_name(runs), "sacreBLEU", "left out"]
    rows = [
        [
            *(row.name, f"{row.count} of {row.seeds}", interval(row.valid_loss, 3)),
            *(interval(row.bleu, 2), interval(row.sacrebleu, 2), "; ".join(row.left_out)),
        ]
        for row in means
    ]
    return (
        "## Means over seeds\n\nMean and 95 % t-interval over the finished seeds; one seed alone has no interval.\n\n"
        + grid(header, rows)
    )


def beside_the_papers(runs):
    """Our BLEU beside the paper's, or the sentence that there is none."""
    rows = tables.differences(runs)
    title = "## Ours beside the paper's"
    if not rows:
        return f"{title}\n\nThe settings of these runs give no BLEU of the paper."
    compared = [run for run in runs if run.settings.get("paper_bleu")]
    other = tables.not_the_papers(compared)
    if other:
        text = (
            f"**No reproduction**: data, size or length differ from the paper's here ({'; '.join(other)}), "
            "and with them the scores."
        )
    else:
        text = f"Preset paper with all {tables.IWSLT14_PAIRS:,} training pairs: the paper's settings (appendix A.1)."
    text += " Ours is tokenized BLEU on the test set at the epoch of the best validation loss, of finished runs."
    header = ["run", "seeds", "ours", "paper", "ours - paper's", "in words"]
    cells = [
        [
            *(row.name, row.seeds, decimals(row.ours, 2), row.paper),
            *(None if row.difference is None else f"{row.difference:+.2f}", in_words(row)),
        ]
        for row in rows
    ]
    return f"{title}\n\n{text}\n\n{grid(header, cells)}"


def in_words(row):
    """A :class:`tables.Difference` as a statement."""
    if row.ours is None:
        return "no finished run with a score"
    if row.difference is None:
        return "the paper gives no number"
    if row.bound:
        place = "above" if row.difference > 0 else "not above"
        return f"{place} the paper's best"
    if round(row.difference, 2) == 0:
        return "equal to the paper's"
    return f"{abs(row.difference):.2f} BLEU {'above' if row.difference > 0 else 'below'} the paper's"


def figures(runs, curves):
    """The figures, or why there is none."""
    parts = ["## Figures"]
    for name, caption in CAPTIONS.items():
        if not curves[name]:
            parts.append(f"{caption} - no figure: {MISSING[name]}.")
            continue
        without = [named(run) for run in runs if not has_curve(run, name)]
        note = f" Without a curve ({MISSING[name]}): {', '.join(without)}." if without else ""
        parts.append(f"{caption} ([SVG](figures/{name}.svg)).{note}\n\n![{caption}](figures/{name}.png)")
    return "\n\n".join(parts)


def has_curve(run, name):
    """Whether a run has a curve in the figure of this name."""
    return bool(curves_of([run])[name])


# -- words --


def values(runs, name):
    """The different values of a setting, in the runs' order; "unknown" for an empty one."""
    return distinct(run.settings[name] or "unknown" for run in runs)


def distinct(items):
    """The different items in their order."""
    return list(dict.fromkeys(items))


def named(run):
    """A run and its seed."""
    return f"{run.name} seed {run.seed}"


def count(number, noun):
    """``1 run``, ``2 runs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def known(run, name):
    """What environment.json says of ``name``, or "unknown"."""
    value = run.environment.get(name)
    return "unknown" if value is None else tables.text(value)


def commit(run):
    """The commit, marked where files differed from it."""
    name = known(run, "commit")
    return f"{name} with uncommitted changes (dirty)" if run.environment.get("dirty") else name


def by_value(runs, value):
    """A value that all runs share, or each with how many runs have it."""
    groups = {}
    for run in runs:
        groups.setdefault(value(run), []).append(run)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value} ({', '.join(map(named, group))})" for value, group in groups.items())


def perplexity(nll_loss):
    """2 to the power of a loss in base 2; inf where that is beyond a float."""
    try:
        return 2.0**nll_loss
    except OverflowError:
        return math.inf


def decimals(value, places):
    """A number with so many decimals; "" for None."""
    return "" if value is None else f"{value:.{places}f}"


def interval(estimate, places):
    """``31.20 (30.90 to 31.50)``, without the interval where there is none; "" for None."""
    if estimate is None:
        return ""
    ends = "" if math.isnan(estimate.low) else f" ({estimate.low:.{places}f} to {estimate.high:.{places}f})"
    return f"{estimate.value:.{places}f}{ends}"


def duration(seconds):
    """``45 s``, ``34 min``, ``2 h 05 min``; "" for None."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def grid(header, rows):
    """A Markdown table; "-" for None and for an empty text."""
    cells = [[cell(value) for value in row] for row in [header, *rows]]
    lines = [cells[0], ["---"] * len(header), *cells[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value):
    """A value as the text of a table's cell."""
    return tables.text(value).replace("|", "\\|") or "-"
