"""Tests of fairseq_lnplugin/lr_scheduler.py: the learning rate of each update (Xiong et al. 2020, sections 3.2 and 4)."""

import json
import logging
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import binarize
from fairseq import checkpoint_utils, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim import FairseqOptimizer
from fairseq_cli import train as fairseq_train
from sentences import sentence_of
from torch.optim.optimizer import register_optimizer_step_pre_hook

import fairseq_lnplugin
from fairseq_lnplugin.lr_scheduler import (
    NoWarmupConfig,
    NoWarmupSchedule,
    NoWarmupSettings,
    WarmupInverseSqrtConfig,
    WarmupInverseSqrtSchedule,
    no_warmup_lr,
    warmup_inverse_sqrt_lr,
)

UPDATES_PER_EPOCH = 3


# The pure functions: landmarks


@pytest.mark.parametrize(("update", "factor"), [(1, 1 / 4000), (2000, 0.5), (4000, 1), (16000, 0.5), (400000, 0.1)])
def test_warmup_rises_linearly_to_lr_max_at_update_T_and_falls_as_the_root(update, factor):  # noqa: N802 - the paper's T
    """lr(t) = t/T lr_max, then lr_max sqrt(T/t), T = 4000."""
    assert warmup_inverse_sqrt_lr(update, 5e-4, 4000) == pytest.approx(5e-4 * factor, rel=1e-12)


def test_one_warmup_update_is_the_papers_no_warmup():
    """T = 1: lr_max at update 1, lr_max / sqrt(2) at update 2."""
    assert [warmup_inverse_sqrt_lr(t, 1.0, 1) for t in (1, 2, 4)] == pytest.approx([1, 0.5**0.5, 0.5])


def test_no_hold_and_inverse_sqrt_is_warmup_inverse_sqrt_with_one_update():
    """t0 = 1: lr_max / sqrt(t)."""
    settings = NoWarmupSettings(5e-4, decay="inverse_sqrt")
    assert [no_warmup_lr(t, 1, settings) for t in range(1, 50)] == pytest.approx(
        [warmup_inverse_sqrt_lr(t, 5e-4, 1) for t in range(1, 50)]
    )


@pytest.mark.parametrize(("epoch", "lr"), [(1, 5e-4), (7, 5e-4), (8, 5e-5), (9, 5e-5), (50, 5e-5)])
def test_the_iwslt14_rate_drops_once_at_epoch_8(epoch, lr):
    """5e-4 in epochs 1 to 7, 5e-5 in every later one (section 4)."""
    settings = NoWarmupSettings(5e-4, hold_epochs=7, decay="step", decay_factor=0.1)
    assert no_warmup_lr(1000 * epoch, epoch, settings, last_held=7000) == pytest.approx(lr, rel=1e-12)


def test_the_wmt14_rate_is_continuous_at_the_end_of_the_hold():
    """lr_max sqrt(t0/t), t0 the last update of epoch 5: lr_max at t0, half of it at 4 t0 (section 4)."""
    settings = NoWarmupSettings(7e-4, hold_epochs=5, decay="inverse_sqrt")
    at = [no_warmup_lr(t, epoch, settings, last_held=1000) for t, epoch in ((1000, 5), (1001, 6), (4000, 20))]
    assert at == pytest.approx([7e-4, 7e-4 * math.sqrt(1000 / 1001), 3.5e-4])


def test_hold_updates_counts_updates_whatever_the_epoch():
    """--hold-updates 10 holds through update 10."""
    settings = NoWarmupSettings(1.0, hold_updates=10, decay="step", decay_factor=0.5)
    assert [no_warmup_lr(t, epoch, settings) for t, epoch in ((1, 1), (10, 9), (11, 1))] == [1.0, 1.0, 0.5]


def test_linear_decay_falls_from_the_last_held_update_to_zero_at_the_total():
    """lr_max (total - t) / (total - t0), t0 = 100, total = 300, and 0 ever after."""
    settings = NoWarmupSettings(1.0, hold_updates=100, decay="linear", total_updates=300)
    at = [no_warmup_lr(t, 1, settings) for t in (1, 100, 101, 200, 299, 300, 301)]
    assert at == pytest.approx([1, 1, 199 / 200, 0.5, 1 / 200, 0, 0])


def test_linear_decay_without_hold_starts_at_lr_max():
    """t0 = 1."""
    settings = NoWarmupSettings(1.0, decay="linear", total_updates=101)
    assert [no_warmup_lr(t, 1, settings) for t in (1, 51, 101)] == pytest.approx([1, 0.5, 0])


def test_no_decay_is_constant():
    """Figure 6: a fixed rate."""
    assert {no_warmup_lr(t, t, NoWarmupSettings(1e-4)) for t in (1, 10, 10**6)} == {1e-4}


# The schedulers, driven as fairseq's trainer drives them


class OneWeight(FairseqOptimizer):
    """An optimizer whose rate can be set and read."""

    def __init__(self):
        super().__init__(None)
        self._optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=123.0)


def no_warmup(**flags):
    """A NoWarmupSchedule from flags; max_update is 0 (not given) as in fairseq."""
    return NoWarmupSchedule(NoWarmupConfig(**{"lr": [1.0], "max_update": 0, **flags}), OneWeight())


def warmup(**flags):
    """A WarmupInverseSqrtSchedule from flags."""
    return WarmupInverseSqrtSchedule(WarmupInverseSqrtConfig(**{"lr": [1.0], **flags}), OneWeight())


def drive(schedule, updates, done=0, state=None, per_epoch=UPDATES_PER_EPOCH):
    """Rates used by updates done+1 .. updates, with trainer.py's order of calls, and the state after each update."""
    schedule.step_update(0)
    if state is not None:
        schedule.load_state_dict(state)
    if done:
        schedule.step_update(done)
    rates, states = [], {}
    for update in range(done + 1, updates + 1):
        if (update - 1) % per_epoch == 0 or update == done + 1:
            schedule.step_begin_epoch(1 + (update - 1) // per_epoch)
            schedule.step_update(update - 1)
        rates.append(schedule.optimizer.get_lr())
        assert schedule.step_update(update) == rates[-1], "the log shows the rate that was used"
        states[update] = schedule.state_dict()
        if update % per_epoch == 0:
            schedule.step(update // per_epoch, 5.0)
            schedule.step_update(update)
    return rates, states


SCHEDULES = {
    "step": lambda: no_warmup(hold_epochs=2, decay="step"),
    "inverse_sqrt": lambda: no_warmup(hold_epochs=2, decay="inverse_sqrt"),
    "linear": lambda: no_warmup(hold_epochs=2, decay="linear", total_updates=11),
    "updates": lambda: no_warmup(hold_updates=4, decay="inverse_sqrt"),
    "warmup": lambda: warmup(warmup_updates=5),
}
EXPECTED = {
    "step": [1] * 6 + [0.1] * 6,
    "inverse_sqrt": [1] * 6 + [math.sqrt(6 / t) for t in range(7, 13)],
    "linear": [1] * 6 + [0.8, 0.6, 0.4, 0.2, 0, 0],
    "updates": [1] * 4 + [math.sqrt(4 / t) for t in range(5, 13)],
    "warmup": [0.2, 0.4, 0.6, 0.8, 1] + [math.sqrt(5 / t) for t in range(6, 13)],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_update_uses_its_scheduled_rate(name):
    """Four epochs of three updates; the first update of the epoch after the hold has the decayed rate."""
    assert drive(SCHEDULES[name](), 12)[0] == pytest.approx(EXPECTED[name], abs=1e-12)


def test_without_the_flag_warm_up_takes_4000_updates():
    """The first update has 1/4000 of the rate."""
    assert drive(warmup(), 1)[0] == pytest.approx([1 / 4000], rel=1e-12)


@pytest.mark.parametrize("done", range(1, 12))
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_schedule_goes_on_as_the_unbroken_one(name, done):
    """Save after update n, load, go on: mid-epoch and at every boundary."""
    rates, states = drive(SCHEDULES[name](), 12)
    assert drive(SCHEDULES[name](), 12, done, states[done])[0] == rates[done:]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_without_its_state_starts_again(name):
    """--reset-lr-scheduler at update 6: a hold of 2 epochs starts again, though linear's total falls into it."""
    expected = EXPECTED[name]
    assert drive(SCHEDULES[name](), 12, done=6)[0] == pytest.approx(expected[:6], abs=1e-12)


def test_a_restarted_linear_decay_still_ends_at_the_total():
    """--reset-lr-scheduler at update 6 of 11, no hold: from lr_max at update 7 to 0 at fairseq's update 11."""
    rates, _ = drive(no_warmup(decay="linear", total_updates=11), 12, done=6)
    assert rates == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0], abs=1e-12)


def test_a_restarted_schedule_can_itself_be_resumed():
    """Restart at update 3, stop after update 10, go on: the hold of 6 updates ended at update 9."""
    rates, states = drive(SCHEDULES["inverse_sqrt"](), 15, done=3)
    assert rates == pytest.approx([1] * 6 + [math.sqrt(6 / t) for t in range(7, 13)])
    assert drive(SCHEDULES["inverse_sqrt"](), 15, 10, states[10])[0] == rates[7:]


def test_a_longer_hold_given_at_a_restart_is_held():
    """Two held epochs before, four after: lr_max again in epoch 4, decay from update 12 on."""
    _, states = drive(SCHEDULES["inverse_sqrt"](), 9)
    rates, _ = drive(no_warmup(hold_epochs=4, decay="inverse_sqrt"), 14, 9, states[9])
    assert rates == pytest.approx([1, 1, 1, math.sqrt(12 / 13), math.sqrt(12 / 14)])


def test_a_shorter_hold_given_at_a_restart_ends_there():
    """Four held epochs before, one after: the decay starts at the restart."""
    _, states = drive(no_warmup(hold_epochs=4, decay="inverse_sqrt"), 5)
    rates, _ = drive(no_warmup(hold_epochs=1, decay="inverse_sqrt"), 7, 5, states[5])
    assert rates == pytest.approx([math.sqrt(5 / 6), math.sqrt(5 / 7)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_saved_state_is_plain_numbers(name):
    """torch.load(weights_only=True) reads nothing else; validation losses may be tensors."""
    schedule = SCHEDULES[name]()
    schedule.step(1, torch.tensor(3.5))
    assert {type(value) for value in schedule.state_dict().values()} <= {int, float, type(None)}


def test_an_update_that_is_retried_keeps_its_rate():
    """After an fp16 overflow fairseq counts no update: the next try has the same rate."""
    schedule = warmup(warmup_updates=4)
    schedule.step_update(0)
    schedule.step_begin_epoch(1)
    assert schedule.step_update(0) == schedule.optimizer.get_lr() == 0.25


def test_an_epoch_without_any_update_does_not_end_in_rate_zero():
    """All of epoch 1 overflowed: t0 is 1, not 0."""
    schedule = no_warmup(hold_epochs=1, decay="inverse_sqrt")
    schedule.step_update(0)
    for epoch in (1, 2):
        schedule.step_begin_epoch(epoch)
        schedule.step_update(0)
    assert schedule.optimizer.get_lr() == 1.0


def test_zero_warmup_updates_are_no_warmup():
    """The inverse_sqrt of fairseq divides by zero (F#1341); here 0 is what 1 is."""
    assert drive(warmup(warmup_updates=0), 4)[0] == drive(warmup(warmup_updates=1), 4)[0]


def test_one_warning_when_training_goes_on_at_rate_zero(caplog):
    """Total 5 and 8 updates: one warning, at update 6."""
    drive(no_warmup(decay="linear", total_updates=5), 8)
    assert len([r for r in caplog.records if "learning rate is 0 since update 5" in r.message]) == 1


def test_one_warning_when_the_hold_outlasts_the_total(caplog):
    """Epochs of 3 updates, two of them held, and a total of 5: at update 5 the rate is still lr_max."""
    drive(no_warmup(hold_epochs=2, decay="linear", total_updates=5), 8)
    assert ["still holds the learning rate at update 5" in record.message for record in caplog.records] == [True]


def test_no_warning_when_training_ends_at_the_total(caplog):
    """The last update of a run of 5 updates has rate 0, as scheduled."""
    drive(no_warmup(decay="linear", max_update=5), 5)
    assert not caplog.records


@pytest.mark.parametrize(
    ("make", "flags", "sentence"),
    [
        (warmup, {"warmup_updates": -1}, "--warmup-updates must be 0 or more, but is -1"),
        (warmup, {"lr": [1e-3, 1e-4]}, "--lr-scheduler warmup_inverse_sqrt takes one --lr"),
        (no_warmup, {"lr": [1e-3, 1e-4]}, "--lr-scheduler no_warmup takes one --lr"),
        (no_warmup, {"lr": [0.0]}, "--lr must be a number above 0, but is 0"),
        (no_warmup, {"lr": [-1.0]}, "--lr must be a number above 0, but is -1"),
        (no_warmup, {"lr": [math.nan]}, "--lr must be a number above 0, but is nan"),
        (no_warmup, {"lr": [math.inf]}, "--lr must be a number above 0, but is inf"),
        (no_warmup, {"decay": "cosine"}, "--decay must be one of none, step, inverse_sqrt, linear"),
        (no_warmup, {"hold_epochs": -1}, "--hold-epochs must be 0 (no hold) or more"),
        (no_warmup, {"hold_updates": -1}, "--hold-updates must be 0 (no hold) or more"),
        (no_warmup, {"hold_epochs": 7}, "--hold-epochs 7 has no effect with --decay none"),
        (no_warmup, {"hold_epochs": 7, "hold_updates": 9, "decay": "step"}, "not both"),
        (no_warmup, {"decay": "step"}, "--decay step needs --hold-epochs or --hold-updates"),
        (no_warmup, {"decay_factor": 0.5}, "--decay-factor belongs to --decay step"),
        (no_warmup, {"hold_epochs": 1, "decay": "step", "decay_factor": 1.5}, "must lie between 0 and 1"),
        (no_warmup, {"hold_epochs": 1, "decay": "step", "decay_factor": 0.0}, "must lie between 0 and 1"),
        (no_warmup, {"hold_epochs": 1, "decay": "step", "decay_factor": 1.0}, "must lie between 0 and 1"),
        (no_warmup, {"total_updates": 9}, "--total-updates belongs to --decay linear"),
        (no_warmup, {"decay": "linear"}, "--decay linear needs --total-updates or --max-update"),
        (no_warmup, {"decay": "linear", "total_updates": 0}, "give a larger --total-updates"),
        (no_warmup, {"decay": "linear", "hold_updates": 9, "max_update": 9}, "give a larger --total-updates"),
    ],
)
def test_a_wrong_setting_ends_in_one_sentence(make, flags, sentence):
    """When the schedule is made."""
    assert sentence in sentence_of(make, **flags)


@pytest.mark.parametrize("state", [{"best": 3.0}, {"lr": 0.1}, warmup().state_dict()])
def test_the_state_of_another_scheduler_is_refused(state):
    """--lr-scheduler changed at a resume."""
    with pytest.raises(SystemExit, match="--reset-lr-scheduler"):
        no_warmup().load_state_dict(state)


# Real training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Binarized made-up text: 24 training pairs, so three updates of 8 sentences an epoch."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(1)
    for part, lines in (("train", 8 * UPDATES_PER_EPOCH), ("valid", 8)):
        pairs = [[rng.randrange(20) for _ in range(6)] for _ in range(lines)]
        (folder / f"{part}.de").write_text("".join(" ".join(f"w{i}" for i in pair) + "\n" for pair in pairs))
        (folder / f"{part}.en").write_text("".join(" ".join(f"v{i}" for i in pair) + "\n" for pair in pairs))
    return binarize(folder / "bin", train=folder / "train", valid=folder / "valid")


def arguments_of(corpus, save_dir, *flags):
    """A fairseq-train command line for a tiny stock transformer."""
    tiny = []
    for side in ("encoder", "decoder"):
        tiny += [f"--{side}-layers", 1, f"--{side}-embed-dim", 8, f"--{side}-ffn-embed-dim", 8]
        tiny += [f"--{side}-attention-heads", 1]
    return [
        str(argument)
        for argument in [corpus, "--save-dir", save_dir, "--arch", "transformer", *tiny, "--optimizer", "adam"]
        + ["--criterion", "label_smoothed_cross_entropy", "--lr", "0.01", "--batch-size", 8, "--cpu", "--num-workers", 0]
        + ["--log-format", "json", "--log-interval", 1, "--seed", 1, *flags]
    ]


def train(corpus, save_dir, *flags, caplog):
    """Train in this process; the rates that the optimizer used, and those that the log shows, each by update."""
    used, logged = {}, {}
    caplog.clear()
    done = [0]

    def note_the_rate(optimizer, *_):
        used[len(used) + 1] = optimizer.param_groups[0]["lr"]

    hook = register_optimizer_step_pre_hook(note_the_rate)
    try:
        with caplog.at_level(logging.INFO):
            args = options.parse_args_and_arch(options.get_training_parser(), input_args=arguments_of(corpus, save_dir, *flags))
            fairseq_train.main(convert_namespace_to_omegaconf(args))
    finally:
        hook.remove()
    for record in caplog.records:
        if record.name == "train_inner":
            line = json.loads(record.message)
            logged[int(line["num_updates"])] = float(line["lr"])
    done = min(logged) - 1
    return {done + update: lr for update, lr in used.items()}, logged


FLAGS = ("--lr-scheduler", "no_warmup", "--hold-epochs", 2, "--decay", "inverse_sqrt", "--max-epoch", 4)
TRAINED = [0.01] * 6 + [0.01 * math.sqrt(6 / t) for t in range(7, 13)]


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """A run of four epochs with a checkpoint after every update: its save folder."""
    save_dir = tmp_path_factory.mktemp("unbroken")
    args = arguments_of(corpus, save_dir, *FLAGS, "--save-interval-updates", 1)
    args = options.parse_args_and_arch(options.get_training_parser(), input_args=args)
    fairseq_train.main(convert_namespace_to_omegaconf(args))
    return save_dir


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (FLAGS, TRAINED),
        (("--lr-scheduler", "warmup_inverse_sqrt", "--warmup-updates", 1, "--max-update", 4),
         [0.01 / math.sqrt(t) for t in (1, 2, 3, 4)]),
        (("--lr-scheduler", "no_warmup", "--decay", "linear", "--max-update", 5),
         [0.01, 0.0075, 0.005, 0.0025, 0]),
    ],
)  # fmt: skip
def test_fairseq_train_uses_and_logs_the_scheduled_rate(corpus, tmp_path, caplog, flags, expected):
    """The optimizer's rate at each of its steps, and `lr` beside the same num_updates in the log."""
    used, logged = train(corpus, tmp_path, *flags, "--no-save", caplog=caplog)
    assert list(used.values()) == pytest.approx(expected)
    assert logged == pytest.approx(used, rel=1e-4)


def checkpoint_after(folder, update):
    """The checkpoint after an update: fairseq names it by its epoch where the update ends one."""
    return next((path for path in folder.glob(f"checkpoint_*_{update}.pt")), folder / f"checkpoint{update // 3}.pt")


@pytest.mark.parametrize("done", [2, 3, 6, 8])
def test_a_resumed_training_uses_and_logs_the_same_rates(corpus, unbroken, tmp_path, caplog, done):
    """Resume mid-epoch and at boundaries, before, at and after the end of the hold (update 6)."""
    checkpoint = checkpoint_after(unbroken, done)
    used, logged = train(corpus, tmp_path, *FLAGS, "--restore-file", checkpoint, "--no-save", caplog=caplog)
    assert used == pytest.approx(dict(list(enumerate(TRAINED, 1))[done:]))
    assert logged == pytest.approx(used, rel=1e-4)


def test_reset_lr_scheduler_starts_the_schedule_again(corpus, unbroken, tmp_path, caplog):
    """From update 9 (end of epoch 3) on another schedule: epoch 4 is its first."""
    checkpoint = checkpoint_after(unbroken, 9)
    flags = ("--lr-scheduler", "warmup_inverse_sqrt", "--warmup-updates", 2, "--max-epoch", 4, "--reset-lr-scheduler")
    used, _ = train(corpus, tmp_path, *flags, "--restore-file", checkpoint, "--no-save", caplog=caplog)
    assert used == pytest.approx({10: 0.005, 11: 0.01, 12: 0.01 * math.sqrt(2 / 3)})


def test_a_checkpoint_of_another_scheduler_is_refused_in_a_sentence(corpus, unbroken, tmp_path, caplog):
    """Without --reset-lr-scheduler."""
    checkpoint = checkpoint_after(unbroken, 9)
    with pytest.raises(SystemExit, match="--reset-lr-scheduler"):
        train(corpus, tmp_path, "--lr-scheduler", "warmup_inverse_sqrt", "--restore-file", checkpoint, caplog=caplog)


def test_the_checkpoint_is_read_with_weights_only(unbroken):
    """The scheduler's state in a real checkpoint."""
    state = checkpoint_utils.load_checkpoint_to_cpu(str(unbroken / "checkpoint_last.pt"))
    saved = state["optimizer_history"][-1]["lr_scheduler_state"]
    assert (saved["num_updates"], saved["last_held"]) == (12, 6)


def test_the_command_ends_with_the_sentence_and_without_a_traceback(corpus, tmp_path):
    """A real fairseq-train with a wrong setting: exit status 1, last line the sentence, no checkpoint."""
    command = [sys.executable, "-m", "fairseq_cli.train"]
    command += arguments_of(corpus, tmp_path, "--lr-scheduler", "warmup_inverse_sqrt", "--warmup-updates", -1)
    command += ["--user-dir", str(Path(fairseq_lnplugin.__file__).parent)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("--warmup-updates must be 0 or more, but is -1")
    assert not list(tmp_path.iterdir())
