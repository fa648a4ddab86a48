"""Tests of fairseq_lnplugin/fused_adam.py: fairseq's ``--optimizer adam`` in one kernel (arXiv 1412.6980, sec. 2)."""

import copy
import math
import shutil

import fairseq_cli.train
import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from sentences import sentence_of

from fairseq_lnplugin.fused_adam import FairseqFusedAdam, FusedAdam, betas_of
from fairseq_lnplugin.radam import RAdam


def build(kind, weights, **flags):
    """One of the two optimizers over ``weights``."""
    values = {"lr": [0.01], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-6, "weight_decay": 0.0, "tpu": False, **flags}
    return kind(FairseqAdamConfig(**values), weights)


def weights_of():
    """Two weights, a matrix and a vector, always the same."""
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (11,))]


def train(optimizer, weights, first, last):
    """Updates ``first`` to ``last`` with made-up gradients from 1e-9 to 10, far below and above epsilon."""
    for update in range(first, last + 1):
        generator = torch.Generator().manual_seed(update)
        for weight in weights:
            sizes = torch.logspace(-9, 1, weight.numel()).view_as(weight)
            weight.grad = torch.randn(weight.shape, generator=generator) * sizes
        optimizer.step()


def assert_close(ours, theirs):
    """Equal to float32's rounding over 20 updates: 1e-6 of the largest weight."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * b.abs().max().item())


@pytest.mark.parametrize(
    "flags",
    [{}, {"weight_decay": 0.1}, {"adam_eps": 1e-3}, {"adam_betas": "(0.9, 0.999)", "adam_eps": 1e-8}],
    ids=str,
)
def test_twenty_updates_are_fairseqs(flags):
    """Any epsilon, weight decay and betas: lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)."""
    ours, theirs = weights_of(), weights_of()
    train(build(FairseqFusedAdam, ours, **flags), ours, 1, 20)
    train(build(FairseqAdam, theirs, **flags), theirs, 1, 20)
    assert_close(ours, theirs)


def test_a_weight_without_a_gradient_in_some_updates_is_at_its_own_update():
    """LayerDrop: fairseq's t is the weight's, and so is the epsilon that belongs to it."""
    ours, theirs = weights_of(), weights_of()
    for kind, weights in ((FairseqFusedAdam, ours), (FairseqAdam, theirs)):
        optimizer = build(kind, weights, adam_eps=1e-3)
        for update in range(1, 11):
            for weight, every in zip(weights, (1, 3), strict=True):
                weight.grad = None if update % every else weight.detach() / 10
            optimizer.step()
    assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_have_float32_moments(dtype):
    """--memory-efficient-fp16: one update is float32's, rounded once."""
    half = torch.nn.Parameter(torch.linspace(-1, 1, 50).to(dtype))
    full = torch.nn.Parameter(half.detach().float())
    half.grad = torch.logspace(-4, 1, 50).to(dtype)
    full.grad = half.grad.float()
    optimizers = [FusedAdam([weight], lr=0.01) for weight in (half, full)]
    for optimizer in optimizers:
        optimizer.step()
    assert {optimizers[0].state[half][moment].dtype for moment in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert torch.equal(half, full.to(dtype))


def test_the_first_update_is_the_closed_form():
    """With m = (1 - b1) g, v = (1 - b2) g^2: a step of lr |g| / (|g| + eps / sqrt(1 - b2)) against g's sign."""
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    weight.grad = torch.tensor([1e-6, -1.0, 5.0], dtype=torch.float64)
    expected = -0.01 * weight.grad / (weight.grad.abs() + 1e-6 / math.sqrt(0.02))
    build(FairseqFusedAdam, [weight]).step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=0)


def test_weight_decay_is_decoupled_and_scaled_by_the_rate():
    """As fairseq's: a gradient of zero leaves (1 - lr decay) of a weight."""
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    build(FairseqFusedAdam, [weight], weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - 0.01 * 0.5))


def test_epsilon_is_the_users_between_updates():
    """What a checkpoint saves and a log shows, though each update has an epsilon of its own."""
    weights = weights_of()
    optimizer = build(FairseqFusedAdam, weights)
    train(optimizer, weights, 1, 3)
    assert [group["eps"] for group in optimizer.param_groups] == [1e-6]


@pytest.mark.parametrize(("before", "after"), [(FairseqAdam, FairseqFusedAdam), (FairseqFusedAdam, FairseqAdam)])
def test_the_state_of_one_goes_on_in_the_other(before, after):
    """Ten updates, state moved over, ten more: as twenty of fairseq's adam."""
    unbroken, weights = weights_of(), weights_of()
    train(build(FairseqAdam, unbroken), unbroken, 1, 20)
    first = build(before, weights)
    train(first, weights, 1, 10)
    second = build(after, weights)
    second.load_state_dict(copy.deepcopy(first.state_dict()), second.optimizer_config)
    train(second, weights, 11, 20)
    assert_close(weights, unbroken)


@pytest.mark.parametrize("flag", ["use_old_adam", "fp16_adam_stats"])
def test_a_flag_that_would_do_nothing_is_refused_in_a_sentence(flag):
    """--use-old-adam and --fp16-adam-stats choose among fairseq's own Adams."""
    told = sentence_of(build, FairseqFusedAdam, weights_of(), **{flag: True})
    assert f"--{flag.replace('_', '-')} is a flag of --optimizer adam" in told


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"adam_betas": "0.9"}, "--adam-betas takes two numbers such as '(0.9, 0.98)', but is 0.9"),
        ({"adam_betas": "(0.9, 1.0)"}, "--adam-betas for fused_adam must lie in [0, 1) and [0, 1), but are 0.9 and 1"),
        ({"adam_eps": 0.0}, "--adam-eps must be above 0, but is 0"),
        ({"weight_decay": -0.1}, "--weight-decay must be 0 or more, but is -0.1"),
    ],
)
def test_a_wrong_setting_ends_in_one_sentence(flags, sentence):
    """When the optimizer is made."""
    assert sentence in sentence_of(build, FairseqFusedAdam, weights_of(), **flags)


def test_betas_are_read_from_text_and_from_numbers():
    """The command line gives text, a YAML file a list."""
    assert betas_of("(0.9, 0.98)") == betas_of([0.9, 0.98]) == (0.9, 0.98)


def test_the_state_of_radam_is_refused_in_a_sentence():
    """Its moments would fit, and under fp16 fairseq compares only the wrappers' names."""
    weights = weights_of()
    with pytest.raises(SystemExit, match="another optimizer than --optimizer fused_adam; add --reset-optimizer"):
        build(FairseqFusedAdam, weights).load_state_dict(RAdam(weights).state_dict())


def test_the_state_of_an_optimizer_without_moments_is_refused_in_a_sentence():
    """SGD's, under --memory-efficient-fp16."""
    weights = weights_of()
    with pytest.raises(SystemExit, match="another optimizer than --optimizer fused_adam; add --reset-optimizer"):
        build(FairseqFusedAdam, weights).load_state_dict(torch.optim.SGD(weights, lr=0.1).state_dict())


# Real training


def test_moments_in_scaled_fp16_are_refused_in_a_sentence():
    """--fp16-adam-stats of fairseq's adam: numbers that mean nothing without their scales."""
    optimizer = build(FairseqFusedAdam, weights_of())
    state = optimizer.state_dict()
    state["state"][0] = {"step": 1, "exp_avg_scale": 2.0}
    with pytest.raises(SystemExit, match="--fp16-adam-stats"):
        optimizer.load_state_dict(state)


def arguments(data_bin, save_dir, *flags):
    """A fairseq-train command line of the tiny model: 20 updates with dropout, weight decay and clipping."""
    args = [data_bin, "--save-dir", save_dir, "--arch", "transformer_ln_study_tiny", "--batch-size", 15, "--cpu"]
    args += ["--criterion", "label_smoothed_cross_entropy", "--optimizer", "fused_adam", "--adam-betas", "(0.9, 0.98)"]
    args += ["--lr", 1e-3, "--weight-decay", 0.01, "--clip-norm", 1, "--disable-validation", "--seed", 1]
    return [*args, "--num-workers", 0, "--required-batch-size-multiple", 1, "--max-update", 20, *flags]


def test_twenty_updates_of_a_real_training_are_fairseqs(data_bin, tmp_path, monkeypatch):
    """With fairseq's adam beside it, fed the same gradients: each weight within 1e-6 of its norm.

    Two trainings would not do: rounding turns a ReLU on or off one day, and from there they part.
    """
    pairs, adam, updates = [], [], []
    step = FairseqFusedAdam.step

    def step_beside_adam(ours, *args, **kwargs):
        if not pairs:
            pairs.extend((weight, torch.nn.Parameter(weight.detach().clone())) for weight in ours.params)
            adam.append(FairseqAdam(ours.cfg, [twin for _, twin in pairs]))
        for weight, twin in pairs:
            twin.grad = None if weight.grad is None else weight.grad.clone()
        adam[0].set_lr(ours.get_lr())
        adam[0].step()
        updates.append(ours.get_lr())
        return step(ours, *args, **kwargs)

    monkeypatch.setattr(FairseqFusedAdam, "step", step_beside_adam)
    flags = map(str, arguments(data_bin, tmp_path, "--no-save"))
    args = options.parse_args_and_arch(options.get_training_parser(), input_args=list(flags))
    fairseq_cli.train.main(convert_namespace_to_omegaconf(args))
    assert len(updates) == 20
    for weight, twin in pairs:
        assert (weight - twin).norm() <= 1e-6 * twin.norm()


def test_a_resumed_run_ends_in_the_weights_of_the_unbroken_one(data_bin, fairseq_train, tmp_path):
    """Saved after update 12, loaded, eight more updates with dropout: equal to the bit."""
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    run = fairseq_train(arguments(data_bin, unbroken, "--save-interval-updates", 12))
    assert run.rc == 0, run.log
    resumed.mkdir()
    shutil.copy(unbroken / "checkpoint_1_12.pt", resumed / "checkpoint_last.pt")
    run = fairseq_train(arguments(data_bin, resumed))
    assert run.rc == 0, run.log
    assert "@ 12 updates" in run.log
    ours, theirs = (torch.load(folder / "checkpoint_last.pt")["model"] for folder in (resumed, unbroken))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
