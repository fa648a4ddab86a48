"""The text of a report, RESULTS.md, section by section: the paper's claims, its figures, and what they rest on.

Numbers come from tables.py, verdicts from claims.py; here they become Markdown. What a figure shows is said as a
:class:`Drawing`, which report.py has drawn.
"""

import math
import re
from typing import NamedTuple

from fairseq_lnplugin.study import claims, tables
from fairseq_lnplugin.study.wording import count, decimals, distinct, duration, grid, interval, named, position, schedule

#: The least that a bootstrap test of 1,000 samples can say, rounded up.
LEAST_P = 0.001
VERSIONS = ("python", "torch", "fairseq", "fairseq_lnplugin", "sacrebleu")
#: The paper's figures about translation, for the headings.
FIGURES = {
    "2": "Figure 2: is warm-up needed? Post-LN with Adam and with SGD",
    "4": "Figure 4: Pre-LN without warm-up",
    "6": "Figure 6: Post-LN at a fixed low rate, without warm-up",
}


class Drawing(NamedTuple):
    """A figure of the page: its file's name, what it shows, its runs, and the function of plots.py with its arguments."""

    name: str
    caption: str
    runs: list
    function: str
    arguments: tuple


def page(runs, plan, to_go, tests):
    """The text of RESULTS.md, and its figures as a list of :class:`Drawing`.

    ``tests``: the claims, and the significance.Difference of each pair of runs that they compare.
    """
    found, differences = tests
    parts, drawings = [heading(runs), warnings(runs, plan), claims_section(runs, plan, found, differences)], []
    for section in tables.sections(runs, plan):
        of_section = curves_of(section, compared(section, found, runs)) + beside_the_paper(section)
        parts.append(figure_section(section, of_section))
        drawings += of_section
    norms = gradient_norms(runs)
    parts.append(norms_section(runs, norms))
    parts += [tests_section(differences), missing_section(runs, plan, to_go), table_of_runs(runs), what_was_run(runs)]
    return "\n\n".join(part for part in parts if part) + "\n", drawings + norms


def heading(runs):
    """Title and origin."""
    studies, data, presets = (values(runs, name) for name in ("study", "data", "preset"))
    pairs = tables.pairs_text([run.settings for run in runs])
    title = f"# {', '.join(studies)}: {', '.join(data)}, {pairs}, preset {', '.join(presets)}"
    return f"{title}\n\nWritten by `fairseq-ln report` from the run folders; a change here is lost at the next report."


def warnings(runs, plan):
    """What a reader must know before any number."""
    lines = []
    if any(tables.made_up(run.settings) for run in runs):
        lines.append(
            "**MADE-UP text**: the corpus `grammar` is sentences of a small grammar. "
            "Its scores say nothing about real language, and compare only with one another."
        )
    other = tables.not_the_papers(runs)
    if other:
        lines.append(
            f"**No reproduction**: data, size or length differ from the paper's here ({'; '.join(other)}), "
            "and with them the scores."
        )
    lines += scaled_lengths(runs, plan) + different_lengths(runs)
    unfinished = [named(run) for run in runs if not run.done]
    if unfinished:
        lines.append(
            f"**{len(unfinished)} of {count(len(runs), 'run')} not finished**: {', '.join(unfinished)}. "
            "Their numbers are of the epochs so far."
        )
    return as_warnings([*lines, *of_every_study(runs, plan, data="corpora", pairs="numbers of training pairs", preset="presets")])


def scaled_lengths(runs, plan):
    """What the presets made of the plan's warm-ups and holds, a text each; [] where they are as in the plan."""
    lines = []
    if scaled := tables.scaled(runs, plan, "warmup_updates"):
        lengths = ", ".join(f"{papers} is {ours:,}" for papers, ours in scaled)
        lines.append(
            f"**Warm-up is scaled** with the length of the training: {lengths} updates. Runs are named after the paper's."
        )
    if scaled := tables.scaled(runs, plan, "hold_epochs"):
        lengths = ", ".join(f"{papers} is {ours}" for papers, ours in scaled)
        lines.append(f"**The hold of the rate is scaled** with the length of the training: {lengths} epochs.")
    return lines


def different_lengths(runs):
    """A text for each figure whose runs were to be trained for different lengths."""
    lines = []
    for figure, members, _ in tables.sections(runs, []):
        found = distinct(
            f"{run.settings.get('max_epoch') or 'any number of'} epochs"
            + (f", {int(run.settings['max_update']):,} updates" if run.settings.get("max_update") else "")
            for run in members
        )
        if len(found) > 1:
            where = f" in figure {figure}" if figure else ""
            lines.append(f"**Different lengths{where}** (at most {'; at most '.join(found)}): such runs cannot be compared.")
    return lines


def of_every_study(runs, plan, **compared):
    """What both reports warn of, a text each: rows not trained, Pre-LN that diverged, runs that cannot be compared.

    ``compared``: what the values of a setting are, which have to be one in all runs.
    """
    lines = []
    absent = tables.absent(runs, plan)
    if absent:
        lines.append(f"**{len(absent)} of {count(len(plan), 'run')} of the plan not trained**: see Missing.")
    odd = [named(run) for run in runs if run.diverged and run.settings["ln_position"] == "pre"]
    if odd:
        lines.append(f"**Pre-LN diverged**, which is not expected: {', '.join(odd)}.")
    for name, what in compared.items():
        found = values(runs, name)
        if len(found) > 1:
            lines.append(f"**Different {what}** ({', '.join(found)}): such runs cannot be compared.")
    return lines


def as_warnings(lines):
    """Texts as Markdown that stands out."""
    return "\n\n".join(f"> {line}" for line in lines)


def claims_section(runs, plan, found, tests):
    """A paragraph for each claim of the paper; nothing where the study can speak to none."""
    if not found:
        return ""
    parts = [
        "## The paper's claims, here",
        "Each claim of the paper that these runs can speak to, and whether it holds with this data, size and length. Scores "
        f"are tokenized BLEU on the test set at the epoch of the best validation loss, of finished runs; {over_seeds(runs)}. A "
        "p-value says how likely chance in the test sentences alone makes a difference as large as that of two runs with one "
        "seed, which the paired bootstrap tests below list.",
    ]
    parts += [claim_paragraph(claim, notes(claim, tests)) for claim in found]
    evidence = claims.Evidence(runs, plan)
    if evidence.left_out:
        parts.append(f"Left out, since data, size or other settings are not those of most runs: {', '.join(evidence.left_out)}.")
    near = claims.near_bound(evidence)
    if near:
        parts.append(
            f"Within 1 BLEU of the {claims.LEARNED:g} below which nothing is measured against a run, so that what is measured "
            f"against them is not firm: {', '.join(near)}."
        )
    return "\n\n".join([*parts, f"What the words mean: {claims.RULES}"])


def claim_paragraph(claim, notes):
    """Verdict, statement, what the paper and our runs have, ``notes`` (sentences), and what is not there yet."""
    verdict = claim.verdict
    if claim.lacking:
        verdict += " yet" if verdict == claims.UNKNOWN else " so far"
    elif verdict == claims.UNKNOWN:
        verdict += " here"
    sentences = [f"**{verdict.capitalize()}.** *Figure {claim.figure}.* {claim.statement}"]
    if claim.paper:
        sentences.append(f"The paper {claim.paper}.")
    if claim.words:
        sentences.append(f"Ours: {'; '.join(claim.words)}.")
    sentences += notes
    if claim.lacking:
        sentences.append(f"Not finished or not run: {', '.join(claim.lacking)}.")
    return " ".join(sentences)


def notes(claim, tests):
    """What is to be said of a claim about translations: how likely chance is, or that its measure has not learned."""
    if claim.verdict == claims.UNKNOWN:
        what = "Some of what" if any(claims.NOT_COUNTED in words for words in claim.words) else "What"
        unlearned = f"{what} it is measured against is below {claims.LEARNED:g} BLEU, and has not learned to translate."
        return [] if claim.lacking else [unlearned]
    made = [test for test in tests if (test.name, test.other) in claim.pairs and test.p_value is not None]
    if not made:
        return []
    p_values = [test.p_value for test in made]
    apart = [f"{difference:+.2f}" for difference in sorted(test.bleu - test.other_bleu for test in made)]
    worst = max(p_values)
    relation = "up to " if len(set(p_values)) > 1 else "" if worst <= LEAST_P else "= "
    what = f"the difference of {apart[0]} in seed {made[0].seed}"
    if len(made) > 1:
        what = f"the differences of {' to '.join(distinct((apart[0], apart[-1])))} between runs of one seed"
    return [f"By chance in the test sentences, {what}: p {relation}{probability(worst)} ({count(len(made), 'test')})."]


def over_seeds(runs):
    """What the numbers of runs are, by how many finished seeds these have."""
    seeds = [finished for group in tables.by_name(runs).values() if (finished := sum(run.done for run in group))]
    if max(seeds, default=1) == 1:
        return "there is one seed of each, so how far seeds differ is not known"
    which = "each is a mean over its seeds" if min(seeds) > 1 else "those of runs with several seeds are means over them"
    return f"{which}, with the 95 % t-interval"


def probability(p):
    """A p-value with three decimals; a bound for :data:`LEAST_P`."""
    return f"\u2264 {LEAST_P:g}" if p <= LEAST_P else f"{p:.3f}"


# -- A figure of the paper --


def figure_section(section, drawings):
    """Figures, table and sources of a figure of the paper."""
    titles = {"": "Runs that no figure of the paper has"}
    title = FIGURES.get(section.figure) or titles.get(section.figure) or f"Figure {section.figure}"
    if section.figure == "4" and any(run.settings["optimizer"] == "radam" for run in section.runs):
        title += ", and RAdam"
    parts = [f"## {title}", *map(shown, drawings)]
    parts += missing_curves(section.runs)
    parts.append(table_of_means(section))
    if section.runs:
        parts.append(source(section.runs))
    return "\n\n".join(parts)


def shown(drawing):
    """A figure in Markdown: the PNG, which leads to the SVG."""
    return f"[![{drawing.caption}](figures/{drawing.name}.png)](figures/{drawing.name}.svg)\n\n*{drawing.caption}.*"


def compared(section, found, runs):
    """The runs of other figures whose losses a claim of this one sets beside those of its own."""
    names = {name for claim in found if claim.figure == section.figure for name in claim.curves}
    return [run for run in runs if run.name in names and run not in section.runs]


def curves_of(section, others):
    """Validation loss, learning rate and BLEU over the epochs, a figure for each part of the section that has any.

    ``others``: runs of other figures to draw beside.
    """
    drawings = []
    for part, runs in tables.parts(section.runs + others).items():
        panels = {
            f"validation loss\n({tables.loss_name(runs)})": tables.valid_loss_curves(runs),
            "learning rate": tables.learning_rate_curves(runs),
            f"BLEU, first {tables.valid500_lines(runs)}\nvalidation sentences": tables.bleu_curves(runs),
        }
        if any(panels.values()):
            losses, *_ = panels.values()
            levels = tables.paper_losses(section.runs) if losses and part != "SGD" else []
            name = "-".join(filter(None, ["figure" + section.figure if section.figure else "curves", part.lower()]))
            caption = "Validation loss, learning rate as logged, and BLEU of the scored epochs on the first validation sentences"
            if others:
                caption += "; beside it the runs of other figures that its claim is about"
            if levels:
                caption += "; dashed: the loss that the paper's text gives"
            drawings.append(Drawing(name, f"{part}: {caption}" if part else caption, runs, "by_epoch", (panels, levels)))
    return drawings


def missing_curves(runs):
    """Sentences on the runs without a point in a panel."""
    reasons = {
        "no epoch's end in train.log": tables.valid_loss_curves,
        "no epoch scored on the subset test1": tables.bleu_curves,
    }
    return [
        f"Without a curve ({reason}): {', '.join(without)}."
        for reason, curves in reasons.items()
        if (without := [named(run) for run in runs if not any(curve.x for curve in curves([run]))])
    ]


def beside_the_paper(section):
    """The figure of our BLEU beside the paper's, in a list; [] where the paper says nothing."""
    rows = [(row, tables.paper_bleu(row.settings)) for row in tables.means(section.runs)]
    rows = [(row.name, row.short_name, row.bleu, paper) for row, paper in rows if paper]
    caption = "Tokenized BLEU on the test set, ours beside the paper's"
    return [Drawing(f"figure{section.figure}-paper", caption, section.runs, "beside_the_paper", (rows,))] if rows else []


def table_of_means(section):
    """A row for each run of a section, means over its seeds, and for each of the plan's that is not there."""
    settings = [*(run.settings for run in section.runs), *section.absent]
    papers, losses = any(map(tables.paper_bleu, settings)), any(row.get("paper_loss") for row in settings)
    header = ["run", bleu_name(section.runs), *(["paper's BLEU", "ours - paper's"] if papers else []), "sacreBLEU"]
    header += [f"validation loss ({tables.loss_name(section.runs)})", *(["paper's validation loss"] if losses else [])]
    header += ["seeds", *DESCRIBED, "remarks"]
    rows = []
    for row in tables.means(section.runs):
        remarks = distinct([*row.left_out, *(f"seed {run.seed} diverged" for run in row.diverged)])
        rows.append(
            [
                *(row.short_name, interval(row.bleu, 2), *(beside(row.bleu, row.settings) if papers else [])),
                *(interval(row.sacrebleu, 2), interval(row.valid_loss, 3)),
                *([row.settings.get("paper_loss")] if losses else []),
                *(f"{len(row.used)} of {len(row.runs)}", *described(row.settings), "; ".join(remarks)),
            ]
        )
    for settings in section.absent:
        name = settings["run"].removeprefix(f"{settings['study']}-")
        paper = beside(None, settings) if papers else []
        loss = [settings.get("paper_loss")] if losses else []
        rows.append(
            [name, "", *paper, "", "", *loss, "0", *described(settings), "not trained; rate and schedule are the paper's"]
        )
    return grid(header, rows)


#: The columns of :func:`described`.
DESCRIBED = ("position", "optimizer", "lr", "learning rate schedule")


def described(settings):
    """Position, optimizer, learning rate and schedule of a run or a row of the plan."""
    return [position(settings), settings["optimizer"], settings["lr"], schedule(settings)]


def beside(ours, settings):
    """The paper's BLEU in its words, and ours minus its number, with the side of a bound on which ours lies."""
    paper = tables.paper_bleu(settings)
    if ours is None or paper is None or paper.number is None:
        return [paper and paper.words, None]
    apart = ours.value - paper.number
    return [paper.words, f"{apart:+.2f}" + (f", {'above' if apart > 0 else 'not above'} its best" if paper.bound else "")]


def source(runs):
    """Where the numbers of a section come from."""
    lines = distinct(f"{score.lines:,}" for run in runs for score in run.scores if score.subset == tables.TEST)
    seeds = sorted({run.seed for run in runs if run.done} or {run.seed for run in runs})
    scored = distinct(shortened(name) for run in runs if run.scores for name in tables.scored_commits(run) or ["unknown"])
    sentences = [
        f"Source: `{', '.join(values(runs, 'data'))}`, {tables.pairs_text([run.settings for run in runs])} for training",
        f", test set{test_name(runs)} of {' or '.join(lines)} lines" if lines else "",
        f"; preset {', '.join(values(runs, 'preset'))} ({', '.join(values(runs, 'arch'))}), {trained_for(runs)}; ",
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}; ",
        f"trained at commit {', '.join(distinct(shortened(commit(run)) for run in runs))}",
        f", scored at commit {', '.join(scored)}." if set(scored) - {"unknown"} else ".",
        f" Loss and scores are of the epoch of the best validation loss; {over_seeds(runs)}.",
        *(f" {line[2:]}." for line in signatures(runs)),
        " All settings: What was run.",
    ]
    if any(tables.paper_bleu(run.settings) for run in runs):
        sentences.append(" The paper's numbers are what its text says (sections 3.2 and 4.2, appendix H).")
    return "".join(sentences)


def test_name(runs):
    """The name of the paper's test set where the scores are of all its lines."""
    whole = {known.test for run in runs if (known := tables.corpus(run.settings)) and known.test}
    lines = {score.lines for run in runs for score in run.scores if score.subset == tables.TEST}
    return f" {', '.join(name for name, _ in whole)}" if whole and lines == {number for _, number in whole} else ""


def trained_for(runs):
    """How long the longest of the runs were trained, in epochs and updates."""
    longest = max(runs, key=lambda run: run.updates)
    return f"up to {count(len(longest.epochs), 'epoch')}, {longest.updates:,} updates"


# -- What the figures rest on --


def gradient_norms(runs):
    """The figure of the gradient norms at the first logged update, in a list; [] where there are none."""
    panels = tables.grad_norm_curves(runs)
    if not panels:
        return []
    caption = "Gradient norms of the FFN's W1 (fc1) and W2 (fc2) by layer, at the first logged update"
    return [Drawing("grad_norm_first_update", caption, runs, "grad_norm_first_update", (panels, tables.first_updates(runs)))]


def norms_section(runs, drawings):
    """Gradient norms, which are no figure of the paper: figure 3 is of expected gradients."""
    without = [named(run) for run in runs if not tables.grad_norm_curves([run])]
    parts = ["## Gradient norms at the first update", *map(shown, drawings)]
    if without:
        parts.append(f"Without a curve (no norms in checkpoints/grad_norm.tsv): {', '.join(without)}.")
    return "\n\n".join(parts) if drawings else ""


def tests_section(tests):
    """The paired bootstrap tests of the claims; nothing where there are none."""
    if not tests:
        return ""
    header = ["run", "against", "seed", "BLEU", "its BLEU", "difference", "p-value"]
    rows = [
        [
            *(test.name, test.other, test.seed, decimals(test.bleu, 2), decimals(test.other_bleu, 2)),
            *([f"{test.bleu - test.other_bleu:+.2f}", probability(test.p_value)] if not test.refusal else ["", test.refusal]),
        ]
        for test in tests
    ]
    settings = distinct(f"`{test.signature}`" for test in tests if test.signature)
    text = (
        "sacrebleu's paired bootstrap test between the translations of two runs with one seed, for each pair that a claim "
        "compares (where none does, for Pre-LN against Post-LN): how likely a difference at least this large is where there is "
        "none. It knows chance in the choice of test sentences, not in the training. Settings: "
        f"{', '.join(settings) or 'no test was made'}. BLEU here is against fairseq-generate's own targets, and may be some "
        "hundredths off the one above."
    )
    return f"## Paired bootstrap tests\n\n{text}\n\n{grid(header, rows)}"


def missing_section(runs, plan, to_go):
    """What is not trained, not finished or not scored; nothing where there is no plan and all is done."""
    lines = [f"- {name}: not trained" for name in to_go]
    for run in runs:
        if not run.done:
            limit = f" of {run.settings['max_epoch']}" if run.settings.get("max_epoch") else ""
            what = "trained, not scored" if run.trained else f"{len(run.epochs)}{limit} epochs trained"
            lines.append(f"- {named(run)}: {what}")
        elif run.best and not run.score(run.best, tables.TEST):
            lines.append(f"- {named(run)}: no score on the test set at its best epoch, {run.best.epoch}")
    if not lines and not plan:
        return ""
    if any(" seed " in name for name in to_go):
        lines.append("\nSeeds are those that recipes were told to train, which the study's file `chosen` keeps, a line each.")
    return "## Missing\n\n" + ("\n".join(lines) or f"Nothing: all {count(len(plan), 'run')} of the plan are trained and scored.")


def table_of_runs(runs):
    """The table of all runs, with its remarks."""
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
    parts = [f"## Every run and seed ({tables.pairs_text([run.settings for run in runs])})", grid(header, rows)]
    return "\n\n".join([*parts, *remarks(runs)])


def bleu_name(runs):
    """The column of tokenized BLEU, with what all its signatures say of it."""
    words = {"case:lc": "lower-case", "compounds:split": "compounds split"}
    found = [score.bleu_signature for run in runs for score in run.scores]
    said = [word for part, word in words.items() if found and all(part in signature for signature in found)]
    return f"BLEU ({', '.join(['tokenized', *said])})"


def remarks(runs):
    """What stands under the table of runs: which numbers they are, what diverged, other scores, and the recipe's notes."""
    parts = [
        "Validation loss is fairseq's, per target token. Perplexity is without smoothing. BLEU and sacreBLEU (on "
        "detokenized text) are of the test set at the epoch of the best validation loss. Wall time is training with "
        "its validations, on the device that What was run names."
    ]
    lines = []
    for run in runs:
        if run.diverged:
            message = run.diverged.message or "no message"
            lines.append(f"- {named(run)} diverged at update {run.diverged.update}: {message}")
        for score in run.scores:
            if score.subset not in (tables.TEST, tables.VALID500):
                what = f"{score.subset}, epoch {score.epoch}, {score.checkpoint}, {score.lines:,} lines"
                lines.append(f"- {named(run)}, {what}: BLEU {score.bleu:.2f}, sacreBLEU {score.sacrebleu:.2f}")
    names = [(re.search(r"-warmup(\d+)", run.name), run.settings["warmup_updates"]) for run in runs]
    if any(match and match[1] != warmup_updates for match, warmup_updates in names):
        parts.append("Run names tell the paper's warm-up; what was run here, with this preset, is in warmup_updates.")
    notes = {run.name: run.settings["note"] for run in runs if run.settings.get("note")}
    if lines:
        parts.append("Remarks:\n\n" + "\n".join(lines))
    if notes:
        parts.append("Notes of the recipe:\n\n" + "\n".join(f"- {name}: {note}" for name, note in notes.items()))
    return parts


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
    lines += trained_with(runs)
    shared, _ = tables.split_settings(runs)
    shared = [f"{name} {value}" for name, value in shared.items() if name not in ("data", "pairs", "preset")]
    text = "## What was run\n\n" + "\n".join(lines)
    if shared:
        text += f"\n\nSettings of {'all runs' if len(runs) > 1 else 'the run'}: {', '.join(shared)}."
    return text + first_command(runs)


def trained_with(runs):
    """Commit, versions, device, threads and cost of the trainings, an item of a list each."""
    names = (*VERSIONS, "device", "threads")
    items = [f"- {name}: {by_value(runs, lambda run, name=name: known(run, name))}" for name in names]
    scored = [run for run in runs if run.scores]
    scoring = [f"- commit of the scoring: {by_value(scored, scoring_commit)}"] if any(run.scored_with for run in scored) else []
    return [f"- commit: {by_value(runs, commit)}", *scoring, *items, *cost(runs)]


def first_command(runs):
    """A paragraph with the command of the first run that has one; "" where none has."""
    first = next((run for run in runs if run.command), None)
    if first is None:
        return ""
    words = f"The command of the first run, {named(first)} (those of all runs are in results.tsv)"
    return f"\n\n{words}:\n\n```\n{first.command}\n```"


def cost(runs):
    """What all trainings and their scoring took, in a list; [] before the first update."""
    timed = [run for run in runs if run.wall_seconds and run.updates]
    updates, seconds = sum(run.updates for run in timed), sum(run.wall_seconds for run in timed)
    if not timed:
        return []
    lines = [f"- training: {updates:,} updates in {duration(seconds)}, {seconds / updates:.2f} s an update with its validations"]
    scored = [run for run in timed if run.score_seconds]
    if scored:
        seconds, trained = sum(run.score_seconds for run in scored), sum(run.wall_seconds for run in scored)
        what = "" if len(scored) == len(runs) else f" of {count(len(scored), 'run')}"
        lines.append(f"- scoring{what}: {duration(seconds)}, {100 * seconds / trained:.0f} % of the time of the training")
    return lines


# -- words --


def values(runs, name):
    """The different values of a setting, in the runs' order; "unknown" for an empty one or none."""
    return distinct(run.settings.get(name) or "unknown" for run in runs)


def known(run, name):
    """What environment.json says of ``name``, or "unknown"."""
    value = run.environment.get(name)
    return "unknown" if value is None else tables.text(value)


def commit(run):
    """The commit of a run's training, or "unknown"."""
    return tables.commit(run.environment) or "unknown"


def shortened(name):
    """The first 12 digits of a commit, for a line of sources, with its ``-dirty``; What was run has it whole."""
    digits, dash, dirty = name.partition("-")
    return digits[:12] + dash + dirty


def scoring_commit(run):
    """The commits of a run's scoring, or "unknown": they were not kept in the folders of the first runs."""
    return ", ".join(tables.scored_commits(run)) or "unknown"


def by_value(runs, value):
    """A value that all runs share, or each with how many runs have it."""
    groups = {}
    for run in runs:
        groups.setdefault(value(run), []).append(run)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value} ({', '.join(map(named, group))})" for value, group in groups.items())


def signatures(runs):
    """The signatures of the scores on the test set, as a list of Markdown items."""
    found = []
    for name, field in (("BLEU", "bleu_signature"), ("sacreBLEU", "sacrebleu_signature")):
        different = distinct(getattr(score, field) for run in runs for score in run.scores if score.subset == tables.TEST)
        found += [f"- {name}: `{signature}`" for signature in different]
    return found


def perplexity(nll_loss):
    """2 to the power of a loss in base 2; inf where that is beyond a float."""
    try:
        return 2.0**nll_loss
    except OverflowError:
        return math.inf
