"""The paper's claims of figure 5 (BERT) and what our runs say of each, by the rules that the page states.

Verdicts have the words of claims.py, where those about translation are.
"""

import functools
from typing import NamedTuple

from fairseq_lnplugin.study.claims import FAILS, HOLDS, IN_PART, UNKNOWN, either
from fairseq_lnplugin.study.finetuning import TASKS, leads
from fairseq_lnplugin.study.pretraining import LEARNED, pairs, races
from fairseq_lnplugin.study.wording import distinct, interval, named, position

#: "About 40 % faster": a speed-up of at least three quarters of that.
FASTER = 0.3

#: What the words mean, a sentence an item.
RULES = (
    "A claim is judged once all runs that it is about have ended.",
    f"*Has learned*: a validation loss at least {LEARNED:g} bit below that of the subwords' frequencies alone. That is half "
    "their perplexity, and less than half of what the one subword before tells (a bigram model of WikiText-2 in 8,000 "
    "subwords: 2.1 bits). Nothing is measured against a Post-LN run that has not learned.",
    f"*Earlier*: a speed-up (Post-LN's updates / Pre-LN's, less 1) of at least {100 * FASTER:.0f} %, in part any, against "
    "every Post-LN run that did not diverge, whatever its rate.",
    "*Diverges*: the training ends in NaN or Inf, and Pre-LN's at the same rate and seed does not; in part if both do, or if "
    "Post-LN ends no better than the frequencies.",
    "*Better than the majority class's*: a mean accuracy above the 95 % Wilson interval of that class's share of dev.",
    "*Ahead*: the 95 % interval of the difference is above 0 at every checkpoint, in part at some. It does not hold where the "
    "interval is above 0 at none and below 0 at some. A checkpoint says nothing where neither position has learned, or "
    "neither accuracy is better than the majority class's.",
)


class Claim(NamedTuple):
    """A statement of the paper with its figure and, in ``paper``, its numbers.

    ``words``: our numbers; ``notes``: sentences; ``lacking``: not there yet.
    """

    figure: str
    statement: str
    paper: str
    verdict: str
    words: list
    notes: list
    lacking: list


def claims(pretrainings, worth, plan, to_go=()):
    """A :class:`Claim` for each of figure 5's that the runs or the rows of the plan can speak to.

    ``worth``: of finetuning.levels; ``to_go``: what has not begun, of tables.to_go.
    """
    settings = [*(p.run.settings for p in pretrainings), *plan]
    tasks = [task for task, figure in TASKS.items() if any(figure in row["figure"].split(",") for row in settings)]
    lacking = functools.partial(lacking_of, pretrainings, plan, to_go)
    return [
        earlier(pretrainings, lacking),
        diverges(pretrainings, plan, lacking),
        *(ahead(task, worth, lacking) for task in tasks),
    ]


# -- Rules --


def faster(speed_up):
    """A speed-up of at least :data:`FASTER`, in part any; ``None`` is that of a loss never reached."""
    if speed_up is None or speed_up <= 0:
        return FAILS
    return HOLDS if speed_up >= FASTER else IN_PART


def divergence(pre, post):
    """Post-LN diverged where Pre-LN did not; in part: so did Pre-LN, or Post-LN is no better than the frequencies."""
    if post.run.diverged:
        return IN_PART if pre.run.diverged else HOLDS
    return IN_PART if post.last is not None and post.last >= post.unigram_loss else FAILS


def above_zero(differences):
    """Of the Estimates of all checkpoints: above 0 at every one, in part at some; not: at none, and below 0 at some."""
    above = [difference.low > 0 for difference in differences]
    if any(above):
        return HOLDS if all(above) else IN_PART
    return FAILS if any(difference.high < 0 for difference in differences) else UNKNOWN


# -- Claims --


def earlier(pretrainings, lacking_where):
    """Figure 5a, section 4.2."""
    found = races(pretrainings)
    verdicts = [faster(race.speed_up) if race.can_be_judged else UNKNOWN for race in found]
    words = [
        f"{rated(race.post)} ends at {race.loss:.3f} after {race.post_updates:,} updates, and {rated(race.pre)} {reaching(race)} "
        f"(seed {race.pre.run.seed})"
        for race in found
    ]
    lacking = lacking_where(lambda settings: True, lambda p: p.run.trained)
    notes = [not_learned(unjudged)] if (unjudged := [race for race in found if not race.can_be_judged]) else []
    return Claim(
        *(
            "5a",
            "Pre-LN has Post-LN's final validation loss earlier.",
            "has it after 500,000 updates instead of 700,000, 40 % faster",
        ),
        *(judged(either(verdicts), lacking), words, [*notes, *spread(found, lacking)], lacking),
    )


def diverges(pretrainings, plan, lacking_where):
    """Figure 5a, section 4.2."""
    rates = {row["lr"] for row in [*(p.run.settings for p in pretrainings), *plan] if row["ln_position"] == "pre"}
    found = [
        (pre, post)
        for pre, post in pairs(pretrainings)
        if pre.run.settings["lr"] == post.run.settings["lr"] and pre.run.trained and post.run.trained
    ]
    words = [f"{rated(post)} {end(post)}, {rated(pre)} {end(pre)} (seed {pre.run.seed})" for pre, post in found]
    lacking = lacking_where(lambda settings: settings["lr"] in rates, lambda p: p.run.trained)
    return Claim(
        *("5a", "Post-LN diverges at Pre-LN's rate, 3e-4.", ""),
        *(judged(either([divergence(*pair) for pair in found]), lacking), words, spread(found, lacking), lacking),
    )


def ahead(task, worth, lacking_where):
    """Figures 5b and 5c, section 4.2."""
    found, figure = leads(task, worth), TASKS[task]
    verdict = above_zero([lead.difference for lead in found if not lead.faults])
    words = [
        f"Pre-LN {lead.pre.accuracy.value:.1f} and Post-LN {lead.post.accuracy.value:.1f} after {lead.pre.updates:,} updates, a "
        f"difference of {interval(lead.difference, 2, '+')}"
        for lead in found
    ]
    lacking = lacking_where(lambda settings: figure in settings["figure"].split(","), lambda p: p.run.done)
    notes = []
    for faults in distinct(tuple(lead.faults) for lead in found if lead.faults):
        updates = distinct(f"{lead.pre.updates:,}" for lead in found if tuple(lead.faults) == faults)
        notes.append(f"After {' and '.join(updates)} updates the difference says nothing: {', and '.join(faults)}.")
    if not found and not lacking:
        notes.append("There are no fine-tunings of both positions from a checkpoint of equal updates.")
    if verdict == UNKNOWN and any(not lead.faults for lead in found):
        notes.append("Where the difference says something, no interval of it lies apart from 0.")
    if any(1 in (lead.pre.pretrainings, lead.post.pretrainings) for lead in found):
        notes.append("The intervals are over the fine-tunings of one pre-training seed: no spread between pre-trainings known.")
    return Claim(
        figure,
        *(f"On {task}, Pre-LN is ahead of Post-LN at equal updates.", ""),
        *(judged(verdict, lacking), words, notes, lacking),
    )


def judged(verdict, lacking):
    """The verdict once all is there."""
    return UNKNOWN if lacking else verdict


# -- Words --


def lacking_of(pretrainings, plan, to_go, concerns, is_there):
    """The rows of the plan without a run, and the runs and seeds not there yet, of those whose settings a claim concerns."""
    settings = {p.run.name: p.run.settings for p in pretrainings}
    missing = [row["run"] for row in plan if row["run"] not in settings and concerns(row)]
    missing += [name for name in to_go if (run := name.partition(" seed ")[0]) in settings and concerns(settings[run])]
    return missing + [named(p.run) for p in pretrainings if concerns(p.run.settings) and not is_there(p)]


def spread(found, lacking):
    """What is to be said of the seeds of a comparison of pre-trainings, as a list of sentences."""
    seeds = {pre.run.seed for pre, *_ in found}
    if not found:
        return [] if lacking else ["No two runs of one text, size, length and seed can be compared."]
    return ["One pre-training seed: no spread known."] if len(seeds) == 1 else []


def not_learned(unjudged):
    """A sentence on Post-LN runs whose final loss is not far enough below the frequencies'."""
    apart = (f"{race.post.unigram_loss - race.loss:.2f} bits ({rated(race.post)})" for race in unjudged)
    return f"Not far enough below the subwords' frequencies to be measured against: {', '.join(apart)}."


def rated(p):
    """``Post-LN at lr 1e-4``."""
    return f"{position(p.run.settings)} at lr {p.run.settings['lr']}"


def reaching(race):
    """When Pre-LN has Post-LN's loss, in words, with the speed-up where there is one to tell."""
    if race.pre_updates is None:
        return f"does not have that by update {race.pre.updates:,}"
    return f"has that at update {updates_text(race)}" + (f", a speed-up of {speed_up_text(race)}" if race.can_be_judged else "")


def updates_text(race):
    """The updates that Pre-LN needed; at most so many where its first validation has the loss."""
    return f"{'at most ' if race.is_bound else ''}{race.pre_updates:,.0f}"


def end(p):
    """How a pre-training ended."""
    if p.run.diverged:
        return f"diverged at update {p.run.diverged.update:,}"
    loss = "without a validation" if p.last is None else f"at {p.last:.3f}"
    return f"ends {loss} after {p.updates:,} updates"


def speed_up_text(race):
    """In percent; at least so much where the first validation has the loss."""
    return f"{'at least ' if race.is_bound else ''}{100 * race.speed_up:.0f} %"
