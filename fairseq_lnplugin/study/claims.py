"""The paper's claims about translation (figures 2, 4 and 6) and what the runs of a study say of each.

A rule is a pure function of numbers that gives a verdict; a claim picks the runs that its rule needs by their settings,
never by their names. Scores are tokenized BLEU on the test set at the epoch of the best validation loss, means over
finished seeds; a seed that diverged before its first score counts as 0. Losses are validation losses in base 2.
"""

import itertools
import math
from collections import Counter
from typing import NamedTuple

from fairseq_lnplugin.study.run_folder import number
from fairseq_lnplugin.study.tables import TEST, bleu_mean, corpus, means
from fairseq_lnplugin.study.wording import distinct, interval, named, position

HOLDS, IN_PART, FAILS, UNKNOWN = "holds", "holds in part", "does not hold here", "cannot be said"

#: BLEU below which a model has not learned to translate, so that nothing can be measured against it; the paper's failed
#: runs have 2.77 and 8.45.
LEARNED = 5.0
#: "Far below" another run: at most this share of its BLEU. The paper's pairs are 8.45 of 34 and 2.77 of 34.
FAR = 0.5
#: "Nearly all" of another run's BLEU is lost: at most this share of it is left. The paper: 2.77 of 34, a twelfth.
LEFT = 0.25
#: "The same level": this many BLEU apart, more than seeds of one setting differ by; up to WIDE it is one in part. Beside a
#: reference below SMALL both shrink in proportion to it: 2 BLEU and 5 are no one level, though 32 and 35 may be.
CLOSE, WIDE, SMALL = 1.0, 3.0, 10.0
#: BLEU that is "just above zero".
ZERO = 1.0
#: "Faster": the other's best loss within this share of its epochs. The paper: the 9th checkpoint against the 15th, 0.6.
FASTER = 2 / 3
#: Losses (base 2) that differ by less are alike; one is "far better" that is lower by LOSS_FAR, 30 % less perplexity.
LOSS_CLOSE, LOSS_FAR = 0.05, 0.5

#: Said behind a comparison with a run that has not learned to translate.
NOT_COUNTED = f"not counted: below {LEARNED:g} BLEU"

RULES = (
    f"*far below*: at most {FAR:g} of the other's BLEU; *a part*: more than {CLOSE:g} BLEU, and less than {FAR:g} of it; *nearly "
    f"all*: at most {LEFT:g} of it is left; *the same level*: not more than {CLOSE:g} BLEU below, in part {WIDE:g}; *little "
    f"difference*: at most {CLOSE:g} BLEU apart, in part {WIDE:g} (bounds in BLEU shrink in proportion beside a run below "
    f"{SMALL:g} BLEU: to half beside {SMALL / 2:g}); *just above zero*: at most {ZERO:g} BLEU; *faster*: the other's best "
    "validation loss, after at most 2/3 of the epochs that the other took to it; *far better* and *worse*: a validation loss "
    f"lower by {LOSS_FAR:g}, or higher by {LOSS_CLOSE:g}, in the epochs that both have. *In part*, where it does not say so "
    f"above: more than {CLOSE:g} BLEU below for *far below* and *nearly all*, far below for *a part*, below {LEARNED:g} for "
    f"*just above zero*, earlier at all for *faster*, lower by {LOSS_CLOSE:g} for *far better*; a run whose seeds say the "
    "opposite of one another; and a statement of which some comparisons hold and others do not. A seed that diverged before its "
    "first score counts as 0 BLEU; losses are those of the seeds that did not diverge, if one did not. Runs of different lengths "
    f"are not compared, but for figure 6. No BLEU and no speed is measured against a run below {LEARNED:g} BLEU; of figure 6 "
    "this is asked of the best run with warm-up only."
)


# -- Rules --


def beside(reference, bound):
    """A bound in BLEU beside a reference: in proportion less where that is below :data:`SMALL`."""
    return bound * min(1.0, reference / SMALL)


def within(difference, reference):
    """A difference in BLEU of at most :data:`CLOSE`, in part :data:`WIDE`."""
    return HOLDS if difference <= beside(reference, CLOSE) else IN_PART if difference <= beside(reference, WIDE) else FAILS


def far_below(bleu, reference, share=FAR):
    """At most this share of the reference's BLEU; in part: more than :data:`CLOSE` below it."""
    if reference < LEARNED:
        return UNKNOWN
    if bleu <= share * reference:
        return HOLDS
    return IN_PART if bleu < reference - beside(reference, CLOSE) else FAILS


def costs_a_part(bleu, reference):
    """More than :data:`CLOSE` below the reference, but not :func:`far_below` it; in part: far below."""
    if reference < LEARNED:
        return UNKNOWN
    if bleu >= reference - beside(reference, CLOSE):
        return FAILS
    return HOLDS if bleu > FAR * reference else IN_PART


def costs_nearly_all(bleu, reference):
    """:func:`far_below` by another bound: at most :data:`LEFT` is left."""
    return far_below(bleu, reference, LEFT)


def same_level(bleu, reference):
    """Not more than :data:`CLOSE` below the reference, in part :data:`WIDE`; being ahead is no fault."""
    if reference < LEARNED:
        return UNKNOWN
    return within(reference - bleu, reference)


def little_difference(bleu, reference):
    """At most :data:`CLOSE` apart, in part :data:`WIDE`, whichever is ahead."""
    if max(bleu, reference) < LEARNED:
        return UNKNOWN
    return within(abs(bleu - reference), max(bleu, reference))


def just_above_zero(bleu):
    """At most :data:`ZERO` BLEU; in part: below :data:`LEARNED`."""
    return HOLDS if bleu <= ZERO else IN_PART if bleu < LEARNED else FAILS


def faster(epoch, reference_epoch):
    """The reference's best loss, of ``reference_epoch``, at the latest at :data:`FASTER` of that; in part: earlier.

    ``epoch``: the first one with a loss as good, or None.
    """
    if epoch is None or epoch >= reference_epoch:
        return FAILS
    return HOLDS if epoch <= FASTER * reference_epoch else IN_PART


def lower(loss, reference, by):
    """A loss at least ``by`` below the reference; in part: :data:`LOSS_CLOSE`. Both may be infinite, where there is none."""
    if loss == math.inf:
        return FAILS
    return HOLDS if loss <= reference - by else IN_PART if loss <= reference - LOSS_CLOSE else FAILS


def either(verdicts):
    """The verdict of comparisons that repeat one another, such as at two learning rates: of those that can be made."""
    return every([verdict for verdict in verdicts if verdict != UNKNOWN])


def every(verdicts):
    """The verdict of the parts of a statement, which all have to be known."""
    if not verdicts or UNKNOWN in verdicts:
        return UNKNOWN
    return verdicts[0] if len(set(verdicts)) == 1 else IN_PART


# -- Which runs --


class Kind(NamedTuple):
    """What a claim says of a run; ``start``: "warm-up", "short warm-up", "none" or "low rate"."""

    ln_position: str
    optimizer: str
    start: str

    @property
    def words(self):
        """For a sentence."""
        start = {"none": "without warm-up", "low rate": "at a fixed low rate"}.get(self.start, f"with {self.start}")
        name = {"adam": "Adam", "radam": "RAdam", "sgd": "SGD"}.get(self.optimizer, self.optimizer)
        return f"{position({'ln_position': self.ln_position})}, {name}, {start}"


WARM, SHORT = Kind("post", "adam", "warm-up"), Kind("post", "adam", "short warm-up")
COLD, LOW = Kind("post", "adam", "none"), Kind("post", "adam", "low rate")
SGD_WARM, SGD_COLD = Kind("post", "sgd", "warm-up"), Kind("post", "sgd", "none")
PRE, PRE_RADAM, RADAM = Kind("pre", "adam", "none"), Kind("pre", "radam", "none"), Kind("post", "radam", "none")

#: Runs that differ in one of these are of different experiments, and are not set against each other. (The preset gives the tokens
#: of an update, of which several workers' whole shares may leave out some.)
EXPERIMENT = ("data", "pairs", "preset", "arch", "weight_init", "dropout", "weight_decay", "label_smoothing")


class Evidence:
    """The runs of a study by :class:`Kind` and learning rate.

    ``runs``: all of them, each with its seed. ``plan``: rows of a plan, by which runs that are not there are named; of a run
    that it has, its warm-up counts, since a preset may have scaled the run's own. ``to_go``: what has not begun, of
    tables.to_go. ``left_out``: the runs and seeds that belong to a smaller experiment than most do. ``means``: the
    tables.RunMean of the others, by name. ``corpus``: the name of the paper's corpus that these are of, or None.
    """

    def __init__(self, runs, plan, to_go=()):
        experiments = [tuple(run.settings.get(name) for name in EXPERIMENT) for run in runs]
        common = Counter(experiments).most_common(1)[0][0]
        odd = [run for run, experiment in zip(runs, experiments, strict=True) if experiment != common]
        self.left_out = [named(run) for run in odd]
        self.means = {row.name: row for row in means([run for run in runs if run not in odd])}
        self.to_go = to_go
        known = {known.name for row in self.means.values() if (known := corpus(row.settings))}
        self.corpus = known.pop() if len(known) == 1 else None
        without = {run.name for run in odd} - self.means.keys()
        self.settings = {name: row.settings for name, row in self.means.items()}
        self.settings |= {row["run"]: row for row in plan if row["run"] not in without}
        warmed = [row for row in self.settings.values() if start(row) == "warm-up"]
        self.longest = {}
        for row in warmed:
            alike = model(row)
            self.longest[alike] = max(self.longest.get(alike, 0), number(row["warmup_updates"]))
        self.lowest = min((number(row["lr"]) for row in warmed if model(row) == ("post", "adam")), default=0.0)

    def kind(self, name):
        """The :class:`Kind` of a run or a row of the plan."""
        row = self.settings[name]
        how = start(row)
        if how == "warm-up" and number(row["warmup_updates"]) < self.longest[model(row)]:
            how = "short warm-up"
        fixed = row["schedule"] == "no_warmup" and row.get("decay") in ("", "none", None)
        if fixed and model(row) == ("post", "adam") and number(row["lr"]) < self.lowest:
            how = "low rate"
        return Kind(row["ln_position"], row["optimizer"], how)

    def names(self, kind, rate=None):
        """The runs and rows of a kind, at one learning rate if it is given."""
        names = [name for name in self.settings if self.kind(name) == kind]
        return [name for name in names if rate is None or number(self.settings[name]["lr"]) == rate]

    def rates(self, kind):
        """The learning rates of a kind, in order."""
        return sorted({number(self.settings[name]["lr"]) for name in self.names(kind)})

    def known(self, kind, rate=None):
        """The means of the finished runs of a kind that have a score, or a divergence in the place of one."""
        rows = [self.means[name] for name in self.names(kind, rate) if name in self.means]
        return [row for row in rows if bleu(row) is not None]

    def lacking(self, kind, rate=None):
        """The runs, seeds and rows of a kind that are not known yet, or words for a kind that has none; [] for nothing."""
        known = self.known(kind, rate)
        names = {row.name for row in known}
        missing = [name for name in self.names(kind, rate) if name not in names]
        missing += [named(run) for row in known for run in row.runs if not run.done]
        missing += [name for name in self.to_go if name.partition(" seed ")[0] in names]
        return missing or ([] if known else [kind.words + ("" if rate is None else f" at lr {rate:g}")])

    def short(self, name):
        """A run's name without its study's."""
        return name.removeprefix(f"{self.settings[name]['study']}-")


def model(settings):
    """LN position and optimizer."""
    return settings["ln_position"], settings["optimizer"]


def start(settings):
    """``warm-up`` or ``none``, from the settings of a run or a row of a plan; T_warmup = 1 is none (section 3)."""
    warmed = settings["schedule"] != "no_warmup" and number(settings["warmup_updates"]) > 1
    return "warm-up" if warmed else "none"


def counted(row):
    """The BLEU of each seed of a tables.RunMean that decides: of the finished ones, and 0 of those that diverged unscored."""
    scores = {run.seed: score.bleu for run in row.used if (score := run.score(run.best, TEST))}
    return [*scores.values(), *(0.0 for run in row.diverged if run.done and run.seed not in scores)]


def bleu(row):
    """The mean of what is :func:`counted`, or None where nothing is."""
    scores = counted(row)
    return math.fsum(scores) / len(scores) if scores else None


def losses(row):
    """Validation loss by epoch, means over the seeds that did not diverge, or all if none, for the epochs that each has."""
    seeds = [run for run in row.used if not run.diverged] or row.used
    by_seed = [{epoch.epoch: epoch.valid_loss for epoch in run.epochs} for run in seeds]
    epochs = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    return {epoch: math.fsum(seed[epoch] for seed in by_seed) / len(by_seed) for epoch in epochs}


# -- Claims --


class Part(NamedTuple):
    """One comparison: its verdict, our numbers in words, and the runs.

    ``pair``: the two whose translations a test may compare; ``curves``: those whose losses are compared; ``lacking``: those
    not yet run.
    """

    verdict: str
    words: str = ""
    pair: tuple | None = None
    curves: tuple = ()
    lacking: tuple = ()

    @property
    def compares(self):
        """Whether it sets two runs side by side, and so has a verdict of its own."""
        return bool(self.pair or self.curves)

    @property
    def judged_words(self):
        """The words with the verdict behind them, where there is one."""
        return f"{self.words} ({NOT_COUNTED if self.verdict == UNKNOWN else self.verdict})" if self.compares else self.words


class Claim(NamedTuple):
    """A statement of the paper with its figure, ``paper``: its numbers in words ("" for none), and what its parts say."""

    figure: str
    statement: str
    paper: str
    verdict: str
    words: list
    pairs: list
    curves: list
    lacking: list


#: Claims that set one kind of run against another at each learning rate: figure, statement, both kinds, and the rule.
AT_EACH_RATE = (
    ("2", "Post-LN with Adam needs a warm-up: without, it stays far below.", COLD, WARM, far_below),
    ("4", "Pre-LN without warm-up reaches the level of Post-LN with warm-up.", PRE, WARM, same_level),
    ("4", "Pre-LN without warm-up converges faster than Post-LN with it.", PRE, WARM, faster),
    ("4", "RAdam trains Post-LN without warm-up, to the level of Adam with warm-up.", RADAM, WARM, same_level),
    ("4", "On Pre-LN, RAdam makes little difference to Adam.", PRE_RADAM, PRE, little_difference),
)
LENGTH = (
    "Post-LN depends on the length of the warm-up: a short one costs a part of the score at the lower rate, and nearly all at "
    "the higher."
)
SGD = "SGD does not replace Adam: Post-LN with SGD is far below Adam with warm-up, and just above zero without."
LOW_RATE = (
    "Post-LN at a fixed low rate without warm-up is far better than at a large rate without warm-up, and worse than with warm-up."
)

#: What the paper's text says of a statement, by its corpus (sections 3.2 and 4.2, appendix H); other data have IWSLT14's.
PAPER = {
    "iwslt14": {
        AT_EACH_RATE[0][1]: "about 34 BLEU with it, 8.45 at best without",
        AT_EACH_RATE[1][1]: "both about 34 BLEU",
        AT_EACH_RATE[2][1]: "its 9th checkpoint is about as good as Post-LN's 15th",
        LENGTH: "T_warmup 500 instead of 4000 gives 31.16 BLEU at lr 5e-4 and 2.77 at 1e-3, where 4000 gives about 34",
        LOW_RATE: "a validation loss of about 4.3 at lr 1e-4 after 27 epochs",
    },
    "wmt14": {AT_EACH_RATE[1][1]: "the same level at both rates", AT_EACH_RATE[2][1]: "it gets there earlier"},
}


def claims(evidence):
    """A :class:`Claim` for each of the paper's that the runs, or the rows of the plan, can speak to, by figure."""
    found = []
    for figure, statement, kind, other, rule in AT_EACH_RATE:
        if evidence.names(kind):
            parts = [part for rate in evidence.rates(kind) for part in compared(evidence, kind, other, rule, rate)]
            found.append(claim(evidence, figure, statement, parts))
    found += [made for judge in (depends_on_length, needs_adam, low_rate) if (made := judge(evidence))]
    return sorted(found, key=lambda claim: claim.figure)


def positions(evidence):
    """Pairs of a Pre-LN and a Post-LN run that share optimizer and learning rate: what to test where no claim compares runs."""
    kept = evidence.means.values()
    pre, post = ([row for row in kept if row.settings["ln_position"] == position] for position in ("pre", "post"))
    alike = lambda row: (row.settings["optimizer"], number(row.settings["lr"]))  # noqa: E731
    return [(row.name, other.name) for row in pre for other in post if alike(row) == alike(other)]


def claim(evidence, figure, statement, *groups):
    """The claim that all groups of parts together decide, each by the comparisons in it that can be made."""
    parts = [part for group in groups for part in group]
    differ = len({part.verdict for part in parts if part.compares}) > 1
    known = evidence.corpus if evidence.corpus in PAPER else "iwslt14"
    paper = PAPER[known].get(statement)
    return Claim(
        *(figure, statement, f"on {known.upper()}: {paper}" if paper else ""),
        every([either([part.verdict for part in group]) for group in groups]),
        [part.judged_words if differ else part.words for part in parts if part.words],
        distinct(part.pair for part in parts if part.pair),
        distinct(name for part in parts for name in part.curves),
        distinct(name for part in parts for name in part.lacking),
    )


def depends_on_length(evidence):
    """Figure 2, section 3.2."""
    if evidence.names(SHORT):
        rates = evidence.rates(SHORT)
        high = compared(evidence, SHORT, WARM, costs_nearly_all, rates[-1])
        return claim(
            *(evidence, "2", LENGTH, compared(evidence, SHORT, WARM, costs_a_part, rates[0])),
            high if len(rates) > 1 else [Part(UNKNOWN, lacking=(f"{SHORT.words} at a higher rate",))],
        )


def needs_adam(evidence):
    """Figure 2, section 3.2."""
    if evidence.names(SGD_WARM) or evidence.names(SGD_COLD):
        best = max(evidence.known(WARM), key=bleu, default=None)
        warm = [Part(UNKNOWN, lacking=tuple(evidence.lacking(SGD_WARM) + evidence.lacking(WARM)))]
        warm += [comparison(evidence, row, best, far_below) for row in evidence.known(SGD_WARM) if best]
        cold = [Part(just_above_zero(bleu(row)), f"{evidence.short(row.name)} {score(row)}") for row in evidence.known(SGD_COLD)]
        cold.append(Part(UNKNOWN, lacking=tuple(evidence.lacking(SGD_COLD))))
        return claim(evidence, "2", SGD, warm, cold)


def low_rate(evidence):
    """Figure 6, appendix H."""
    if evidence.names(LOW):
        lows, colds, warms = map(evidence.known, (LOW, COLD, WARM))
        groups = [
            [loss_below(evidence, low, cold, LOSS_FAR) for low in lows for cold in colds],
            [loss_below(evidence, warm, low, LOSS_CLOSE) for warm in warms for low in lows],
        ]
        if max(map(bleu, warms), default=LEARNED) < LEARNED:
            groups = [[part._replace(verdict=UNKNOWN) for part in group] for group in groups]
        groups[0][:0] = [losses_in_words(evidence, low, [*colds, *warms]) for low in lows if colds or warms]
        groups[0] += [Part(UNKNOWN, lacking=tuple(evidence.lacking(kind))) for kind in (LOW, COLD, WARM)]
        return claim(evidence, "6", LOW_RATE, *groups)


def near_bound(evidence):
    """Runs that others are measured against and whose BLEU is within 1 of :data:`LEARNED`: their short names and scores."""
    rows = [row for kind in (WARM, PRE) for row in evidence.known(kind)]
    return [f"{evidence.short(row.name)} ({bleu(row):.2f})" for row in rows if abs(bleu(row) - LEARNED) <= 1]


# -- Comparisons --


def compared(evidence, kind, reference, rule, rate):
    """A part for each finished run of a kind against each of the reference kind at one learning rate, and one of what is lacking.

    ``rule``: a function of both BLEU scores, or :func:`faster`, which is about validation losses.
    """
    judge = speed if rule is faster else comparison
    pairs = itertools.product(evidence.known(kind, rate), evidence.known(reference, rate))
    lacking = Part(UNKNOWN, lacking=tuple(evidence.lacking(kind, rate) + evidence.lacking(reference, rate)))
    return [*(judge(evidence, row, other, rule) for row, other in pairs), lacking]


def unlike(evidence, row, other):
    """A part that says why two runs cannot be compared, or None where they can: all their seeds have one length."""
    lengths = {tuple(run.settings.get(name) for name in ("max_epoch", "max_update")) for run in (*row.runs, *other.runs)}
    names = " and ".join(distinct(evidence.short(each.name) for each in (row, other)))
    return Part(UNKNOWN, f"{names} have different lengths, and are not compared") if len(lengths) > 1 else None


def comparison(evidence, row, other, rule):
    """A part of two runs' BLEU: ``rule`` of both means; in part where the seeds of ``row`` say the opposite of one another."""
    words = f"{evidence.short(row.name)} {score(row)} against {evidence.short(other.name)} {score(other)}"
    seeds = {rule(of_seed, bleu(other)) for of_seed in counted(row)}
    verdict = IN_PART if {HOLDS, FAILS} <= seeds else rule(bleu(row), bleu(other))
    return unlike(evidence, row, other) or Part(verdict, words, (row.name, other.name))


def speed(evidence, row, other, rule):
    """A part of when one run has the other's best validation loss; ``rule`` of both epochs."""
    if of_other_lengths := unlike(evidence, row, other):
        return of_other_lengths
    if not losses(other):
        return Part(UNKNOWN, f"{evidence.short(other.name)} diverged before its first validation")
    best = min(losses(other), key=losses(other).get)
    epoch = next((epoch for epoch, loss in losses(row).items() if loss <= losses(other)[best]), None)
    reached = f"reaches it in epoch {epoch}" if epoch else f"has not reached it by epoch {max(losses(row), default=0)}"
    words = (
        f"{evidence.short(other.name)} has its best loss, {losses(other)[best]:.3f}, in epoch {best}; "
        f"{evidence.short(row.name)} {reached}"
    )
    return Part(UNKNOWN if bleu(other) < LEARNED else rule(epoch, best), words, curves=(row.name, other.name))


def loss_below(evidence, row, other, by):
    """A part of the best validation losses of two runs in the epochs that both have, in words where it does not hold.

    ``by``: as :func:`lower`.
    """
    epochs = epochs_of_both(row, other)
    verdict = lower(best_loss(row, epochs), best_loss(other, epochs), by)
    relation = {
        IN_PART: f"is below {evidence.short(other.name)} by less than {by:g}",
        FAILS: f"is not below {evidence.short(other.name)} by {LOSS_CLOSE:g}",
    }
    words = f"{evidence.short(row.name)} {relation[verdict]}" if verdict in relation else ""
    return Part(verdict, words, curves=(row.name, other.name))


def losses_in_words(evidence, row, others):
    """A part without a verdict: the best losses of a run and of others in the epochs that both have, and the run's own best."""
    by_epochs = {}
    for other in others:
        by_epochs.setdefault(epochs_of_both(row, other), []).append(other)
    words = [
        f"best validation loss of {epochs} epochs: "
        + ", ".join(f"{evidence.short(each.name)} {best_loss(each, epochs):.3f}" for each in (row, *beside))
        for epochs, beside in by_epochs.items()
    ]
    words.append(f"of all its {len(losses(row))} epochs {evidence.short(row.name)} has {best_loss(row):.3f}")
    return Part(UNKNOWN, "; ".join(words))


def epochs_of_both(row, other):
    """How many epochs two runs have both; one whose seeds all diverged has no more to come, so that only the other's count."""
    going_on = [each for each in (row, other) if not all(run.diverged for run in each.used)]
    return min(max(losses(each), default=0) for each in going_on or [row])


def best_loss(row, epochs=math.inf):
    """The lowest of the losses up to an epoch; infinite where a run has none."""
    return min((loss for epoch, loss in losses(row).items() if epoch <= epochs), default=math.inf)


def score(row):
    """BLEU in words, with its interval, the number of seeds, and how many of them diverged."""
    scores, diverged = counted(row), len([run for run in row.diverged if run.done])
    if row.bleu is None:
        return "diverged before any score"
    remarks = [f"over {len(scores)} seeds"] if len(scores) > 1 else []
    remarks += ["diverged" if len(scores) == 1 else f"{diverged} of them diverged"] if diverged else []
    return " ".join([interval(bleu_mean(scores), 2), ", ".join(remarks)]).strip()
