"""Where the learning rate is decided: two pure functions of (update, epoch, settings), then two schedulers.

Update t counts from 1, and the rate *used* by update t is what the schedule says for t (Xiong et al. 2020,
section 3.2). fairseq's own ``inverse_sqrt`` is one update late (update t gets the rate of t - 1, update 1
gets 0) and divides by zero without warm-up; its ``fixed`` with ``--force-anneal`` multiplies by
``--lr-shrink`` again at every later epoch. fairseq logs the rate of the *next* update; here the log shows,
beside update t, the rate that update t used.
"""
# ruff: noqa: UP006, UP035, UP045 - fairseq builds its flags from these fields and knows typing's types only

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import List, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

logger = logging.getLogger(__name__)

#: What follows the held rate of ``no_warmup``.
DECAYS = ("none", "step", "inverse_sqrt", "linear")


@dataclasses.dataclass(frozen=True)
class NoWarmupSettings:
    """Settings of :func:`no_warmup_lr`; updates and epochs count from 1.

    ``lr_max`` is held for ``hold_epochs`` epochs or ``hold_updates`` updates (at most one of them above 0;
    both 0: for the first update only), then falls as ``decay`` says. ``decay_factor`` belongs to ``step``;
    ``total_updates``, the update at which the rate is 0, to ``linear``.
    """

    lr_max: float
    hold_epochs: int = 0
    hold_updates: int = 0
    decay: str = "none"
    decay_factor: float = 0.1
    total_updates: int | None = None


def no_warmup_lr(update, epoch, settings, last_held=None):
    """Rate of an update without warm-up: held at lr_max from the first update on, then decayed.

    With t = ``update`` and t0 the last update that had lr_max:

    1. hold          lr_max
    2. none          lr_max
    3. step          lr_max * decay_factor, once (the paper's IWSLT14 runs: 0.1 from epoch 8 on)
    4. inverse_sqrt  lr_max * sqrt(t0 / t); t0 = 1: the paper's T_warmup = 1 (section 3); t0 the last update
       of epoch 5: its WMT14 runs (section 4)
    5. linear        lr_max * (total - t) / (total - t0), 0 from update ``total_updates`` on (its RAdam runs);
       a hold that is longer than that comes first

    Args:
        update: t, from 1.
        epoch: the epoch that update t belongs to, from 1.
        settings: :class:`NoWarmupSettings`.
        last_held: t0 where it depends on the data, that is with ``hold_epochs``; otherwise t0 is
            ``hold_updates``, at least 1.

    Returns:
        the learning rate (float).

    """
    held = epoch <= settings.hold_epochs if settings.hold_epochs else update <= max(settings.hold_updates, 1)
    if held or settings.decay == "none":  # 1 and 2
        return settings.lr_max
    if settings.decay == "step":  # 3
        return settings.lr_max * settings.decay_factor
    t0 = last_held if settings.hold_epochs else max(settings.hold_updates, 1)
    if settings.decay == "inverse_sqrt":  # 4
        return settings.lr_max * math.sqrt(t0 / update)
    if update >= settings.total_updates:  # 5
        return 0.0
    return settings.lr_max * (settings.total_updates - update) / (settings.total_updates - t0)


def warmup_inverse_sqrt_lr(update, lr_max, warmup_updates):
    """Rate of an update with warm-up (section 3.2).

    With t = ``update`` and T = ``warmup_updates``:

    1. t <= T  lr_max * t / T
    2. t > T   lr_max * sqrt(T / t)

    Args:
        update: t, from 1.
        lr_max: the highest rate, that of update T.
        warmup_updates: T, at least 1; T = 1 is the paper's "no warm-up".

    Returns:
        the learning rate (float).

    """
    if update <= warmup_updates:  # 1
        return lr_max * update / warmup_updates
    return lr_max * math.sqrt(warmup_updates / update)  # 2


def one_lr(lr, name):
    """lr_max from fairseq's ``--lr``, a list of floats.

    Raises:
        SystemExit: several rates, or one that is not a positive number.

    """
    rates = list(lr) if isinstance(lr, Sequence) else [lr]
    if len(rates) != 1:
        raise SystemExit(f"--lr-scheduler {name} takes one --lr, the highest rate, but got {len(rates)}: {rates}")
    if not (rates[0] > 0 and math.isfinite(rates[0])):
        raise SystemExit(f"--lr must be a number above 0, but is {rates[0]:g}")
    return float(rates[0])


class ExactSchedule(FairseqLRScheduler):
    """What both schedulers share: which update and epoch it is, what is set, what is logged, what is saved.

    fairseq's trainer calls ``step_begin_epoch(epoch)`` before an epoch's first update and
    ``step_update(num_updates)`` after each update, at each begin and end of an epoch, and when a checkpoint
    was loaded. The schedule starts where training starts, or, with ``--reset-lr-scheduler``, at the restart:
    updates and epochs are counted from there.
    """

    #: What ``--lr-scheduler`` calls it.
    name = ""

    def __init__(self, cfg, optimizer):
        super().__init__(cfg, optimizer)
        self.lr_max = one_lr(cfg.lr, self.name)
        self.num_updates = 0  # as fairseq counts them
        self.start_update = None  # num_updates before the schedule's first update; None until an epoch begins
        self.start_epoch = None  # the epoch before the schedule's first epoch
        self.epoch = 1  # counted from start_epoch

    def scheduled_lr(self, update):
        """The rate of an update, counted from 1 at the schedule's start."""
        raise NotImplementedError

    def updates_done(self):
        """Updates since the schedule's start."""
        return self.num_updates - (self.start_update or 0)

    def step_begin_epoch(self, epoch):
        """Note the epoch; the trainer's ``step_update``, which follows, sets the rate."""
        if self.start_update is None:
            self.start_update, self.start_epoch = self.num_updates, epoch - 1
        self.epoch = epoch - self.start_epoch

    def step_update(self, num_updates):
        """Set the rate of update ``num_updates + 1``.

        Returns:
            what fairseq logs beside ``num_updates``: right after an update the rate which that update used,
            otherwise (start, resume, epoch boundary, where ``--stop-min-lr`` looks) the rate just set.

        """
        used = self.optimizer.get_lr()
        after_an_update = num_updates == self.num_updates + 1
        self.num_updates = num_updates
        self.optimizer.set_lr(self.scheduled_lr(self.updates_done() + 1))
        return used if after_an_update else self.optimizer.get_lr()

    def state_dict(self):
        """Plain numbers, so that torch.load reads them with ``weights_only=True``."""
        return {
            "best": None if self.best is None else float(self.best),
            "num_updates": self.num_updates,
            "start_update": self.start_update,
            "start_epoch": self.start_epoch,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state_dict):
        """Continue where :meth:`state_dict` was taken.

        Raises:
            SystemExit: the state is that of another scheduler.

        """
        if set(state_dict) != set(self.state_dict()):
            raise SystemExit(
                f"the checkpoint was trained with another scheduler than --lr-scheduler {self.name}; "
                "add --reset-lr-scheduler to start this schedule at its update, or use the same scheduler"
            )
        for name, value in state_dict.items():
            setattr(self, name, value)


@dataclasses.dataclass
class NoWarmupConfig(FairseqDataclass):
    """Flags of ``--lr-scheduler no_warmup``."""

    hold_epochs: int = dataclasses.field(
        default=0, metadata={"help": "hold --lr for the first N epochs (paper: IWSLT14 7, WMT14 5)"}
    )
    hold_updates: int = dataclasses.field(
        default=0, metadata={"help": "hold --lr for the first N updates; not with --hold-epochs"}
    )
    decay: ChoiceEnum(DECAYS) = dataclasses.field(
        default="none",
        metadata={
            "help": "after the hold: none, step (times --decay-factor, once), inverse_sqrt (lr * sqrt(t0/t), "
            "t0 the last held update), linear (to 0 at --total-updates)"
        },
    )
    decay_factor: Optional[float] = dataclasses.field(
        default=None, metadata={"help": "what --decay step multiplies the rate with (default: 0.1)"}
    )
    total_updates: Optional[int] = dataclasses.field(
        default=None, metadata={"help": "the update at which --decay linear is at 0 (default: --max-update)"}
    )
    max_update: int = II("optimization.max_update")
    lr: List[float] = II("optimization.lr")


def no_warmup_settings(cfg):
    """Checked settings of a :class:`NoWarmupConfig`.

    Raises:
        SystemExit: a value out of range, or flags that contradict each other.

    """
    lr_max, decay = one_lr(cfg.lr, "no_warmup"), str(cfg.decay)
    if decay not in DECAYS:
        raise SystemExit(f"--decay must be one of {', '.join(DECAYS)}, but is {decay}")
    for flag, value in (("--hold-epochs", cfg.hold_epochs), ("--hold-updates", cfg.hold_updates)):
        if value < 0:
            raise SystemExit(f"{flag} must be 0 (no hold) or more, but is {value}")
        if value and decay == "none":
            raise SystemExit(f"{flag} {value} has no effect with --decay none: say what follows the hold, or drop the flag")
    if cfg.hold_epochs and cfg.hold_updates:
        raise SystemExit("give --hold-epochs or --hold-updates, not both")
    if decay == "step" and not (cfg.hold_epochs or cfg.hold_updates):
        raise SystemExit("--decay step needs --hold-epochs or --hold-updates: it says when the rate drops")
    if cfg.decay_factor is not None and decay != "step":
        raise SystemExit(f"--decay-factor belongs to --decay step, but --decay is {decay}")
    if cfg.total_updates is not None and decay != "linear":
        raise SystemExit(f"--total-updates belongs to --decay linear, but --decay is {decay}")
    factor = 0.1 if cfg.decay_factor is None else cfg.decay_factor
    if not 0 < factor < 1:
        raise SystemExit(f"--decay-factor must lie between 0 and 1, but is {factor:g}")
    total = None
    if decay == "linear":
        total = cfg.max_update if cfg.total_updates is None else cfg.total_updates
        if not total and cfg.total_updates is None:
            raise SystemExit("--decay linear needs --total-updates or --max-update: the update at which the rate is 0")
        if total <= max(cfg.hold_updates, 1):
            raise SystemExit(
                f"--decay linear is at 0 at update {total}, but --lr is held up to update "
                f"{max(cfg.hold_updates, 1)}; give a larger --total-updates"
            )
    return NoWarmupSettings(lr_max, cfg.hold_epochs, cfg.hold_updates, decay, factor, total)


@register_lr_scheduler("no_warmup", dataclass=NoWarmupConfig)
class NoWarmupSchedule(ExactSchedule):
    """``--lr-scheduler no_warmup``: :func:`no_warmup_lr`.

    ``--total-updates`` is fairseq's update number also after ``--reset-lr-scheduler``.

    Raises:
        SystemExit: see :func:`no_warmup_settings`.

    """

    name = "no_warmup"

    def __init__(self, cfg, optimizer):
        super().__init__(cfg, optimizer)
        self.settings = no_warmup_settings(cfg)
        self.last_held = None  # last update of epoch --hold-epochs, once it is known
        self.warned = False

    def scheduled_lr(self, update):
        """The rate of an update, counted from 1 at the schedule's start."""
        settings = self.settings
        if settings.total_updates is not None and self.start_update:
            settings = dataclasses.replace(settings, total_updates=settings.total_updates - self.start_update)
        return no_warmup_lr(update, self.epoch, settings, self.last_held)

    def step_begin_epoch(self, epoch):
        """Note the epoch, and where the hold has ended its last update."""
        super().step_begin_epoch(epoch)
        self.note_last_held()

    def note_last_held(self):
        """Keep the last held update: the one before the first epoch after the hold."""
        if not self.settings.hold_epochs or self.epoch <= self.settings.hold_epochs:
            self.last_held = None
        elif self.last_held is None:
            self.last_held = max(self.updates_done(), 1)  # an epoch can be without an update (fp16 overflows)

    def step_update(self, num_updates):
        """As the base class; warns once when ``--total-updates`` is reached in the hold, or passed at rate 0."""
        used = super().step_update(num_updates)
        total, held = self.settings.total_updates, self.epoch <= self.settings.hold_epochs
        if total is None or self.warned:
            return used
        if num_updates >= total and held:
            self.warned = True
            logger.warning(
                f"--hold-epochs {self.settings.hold_epochs} still holds the learning rate at update {num_updates}, though "
                f"--decay linear was to be at 0 at update {total}: give fewer --hold-epochs, or a larger --total-updates"
            )
        elif num_updates > total and used == 0:
            self.warned = True
            logger.warning(
                f"the learning rate is 0 since update {total}, where --decay linear ends, and training goes on "
                "without learning: give a larger --total-updates, or --max-update"
            )
        return used

    def state_dict(self):
        """The base class's numbers and the last held update."""
        return {**super().state_dict(), "last_held": self.last_held}

    def load_state_dict(self, state_dict):
        """As the base class; ``--hold-epochs`` may be another one than before."""
        super().load_state_dict(state_dict)
        self.note_last_held()


@dataclasses.dataclass
class WarmupInverseSqrtConfig(FairseqDataclass):
    """Flags of ``--lr-scheduler warmup_inverse_sqrt``."""

    warmup_updates: int = dataclasses.field(
        default=4000,
        metadata={"help": "T: update t uses t/T * lr up to T, then lr * sqrt(T/t); 1, or 0, is no warm-up"},
    )
    lr: List[float] = II("optimization.lr")


@register_lr_scheduler("warmup_inverse_sqrt", dataclass=WarmupInverseSqrtConfig)
class WarmupInverseSqrtSchedule(ExactSchedule):
    """``--lr-scheduler warmup_inverse_sqrt``: :func:`warmup_inverse_sqrt_lr`.

    ``--warmup-updates 0`` is what 1 is: no warm-up.

    Raises:
        SystemExit: ``--warmup-updates`` below 0.

    """

    name = "warmup_inverse_sqrt"

    def __init__(self, cfg, optimizer):
        super().__init__(cfg, optimizer)
        if cfg.warmup_updates < 0:
            raise SystemExit(
                f"--warmup-updates must be 0 or more, but is {cfg.warmup_updates}; without warm-up use 1 or 0 "
                "(lr at the first update, then lr / sqrt(t)), or --lr-scheduler no_warmup"
            )
        self.warmup_updates = max(cfg.warmup_updates, 1)

    def scheduled_lr(self, update):
        """The rate of an update, counted from 1 at the schedule's start."""
        return warmup_inverse_sqrt_lr(update, self.lr_max, self.warmup_updates)
