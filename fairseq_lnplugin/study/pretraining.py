"""Masked-LM pre-trainings (figure 5a): their losses by update, which have learned, and when Pre-LN has Post-LN's final loss.

Losses are validation losses in base 2: bits a masked subword.
"""

import math
from typing import NamedTuple

from fairseq_lnplugin.study.run_folder import damaged, number, read_validations

#: A model has learned whose loss is so many bits below what the subwords' frequencies alone give: half their perplexity. That
#: is little to ask: a bigram model, which knows the one subword before, is 2.1 bits below them on WikiText-2 in 8,000
#: subwords (interpolated Kneser-Ney, discount 0.75; 7.80 against 9.95 bits on our validation text).
LEARNED = 1.0
#: Runs that differ in one of these are of different experiments, and are not set against each other. (The preset gives the tokens
#: of an update, of which several workers' whole shares may leave out some.)
EXPERIMENT = ("data", "words", "preset", "arch", "weight_init", "dropout", "tokens_per_sample", "max_update")


class Pretraining(NamedTuple):
    """A Run and its validations, pairs (updates, loss) in order."""

    run: object
    losses: list

    @property
    def finite(self):
        """The validations with a finite loss."""
        return [point for point in self.losses if math.isfinite(point[1])]

    @property
    def last(self):
        """The last finite loss, or None; that of a run under way is not its final one."""
        return self.finite[-1][1] if self.finite else None

    @property
    def updates(self):
        """How many updates the log tells of."""
        return max([self.run.updates, *(update for update, _ in self.losses)])

    @property
    def state(self):
        """``diverged``, ``finished``, ``pre-trained`` (the recipe has not finished its fine-tunings) or ``not finished``."""
        if self.run.diverged:
            return "diverged"
        return "finished" if self.run.done else "pre-trained" if self.run.trained else "not finished"

    @property
    def best(self):
        """The lowest finite loss, or None."""
        return min((loss for _, loss in self.finite), default=None)

    @property
    def unigram_loss(self):
        """The loss of the subwords' frequencies alone."""
        return float(self.run.settings["unigram_loss"])

    @property
    def position(self):
        """``pre`` or ``post``."""
        return self.run.settings["ln_position"]

    def loss_at(self, update):
        """The last finite loss up to an update; NaN where there is none."""
        return next((loss for at, loss in reversed(self.finite) if at <= update), math.nan)

    def has_learned(self, loss):
        """Whether a loss of this run is at least :data:`LEARNED` below that of the frequencies; NaN is not."""
        return self.unigram_loss - loss >= LEARNED


class Race(NamedTuple):
    """When a Pre-LN run has the final loss of a Post-LN run of the same seed; ``pre_updates`` is None where it never has.

    ``is_bound``: it had that loss at its first validation already, so that ``pre_updates`` is the most that it needed.
    """

    pre: Pretraining
    post: Pretraining
    loss: float
    post_updates: int
    pre_updates: float | None
    is_bound: bool

    @property
    def speed_up(self):
        """Post-LN's updates over Pre-LN's, less 1; None where Pre-LN never has the loss."""
        return self.pre_updates and self.post_updates / self.pre_updates - 1

    @property
    def can_be_judged(self):
        """Whether Post-LN has learned, so that its loss is worth being reached."""
        return self.post.has_learned(self.loss)


def read_pretraining(run):
    """The :class:`Pretraining` of a Run.

    Raises:
        RunFolderError: settings.tsv does not tell the loss of the subwords' frequencies.

    """
    if not math.isfinite(number(run.settings.get("unigram_loss"))):
        raise damaged(run.folder / "settings.tsv", "unigram_loss is no number")
    return Pretraining(run, read_validations(run.folder / "train.log"))


def experiment(run):
    """What a Run has to share with another to be set against it: text, size, length and all else of :data:`EXPERIMENT`."""
    return tuple(run.settings.get(name) for name in EXPERIMENT)


def pairs(pretrainings):
    """The pairs of a Pre-LN and a Post-LN :class:`Pretraining` of one experiment and one seed."""
    return [
        (pre, post)
        for pre in pretrainings
        for post in pretrainings
        if (pre.position, post.position) == ("pre", "post")
        and pre.run.seed == post.run.seed
        and experiment(pre.run) == experiment(post.run)
    ]


def races(pretrainings):
    """A :class:`Race` for each of the pairs in which both have ended, and Post-LN not by divergence."""
    found = []
    for pre, post in pairs(pretrainings):
        if pre.run.trained and post.run.trained and not post.run.diverged and post.finite:
            updates, loss = post.finite[-1]
            at = reached(pre.losses, loss)
            found.append(Race(pre, post, loss, updates, at, at is not None and at == pre.finite[0][0]))
    return found


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
