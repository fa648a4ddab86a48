"""Tests of fairseq_lnplugin/radam.py: RAdam (arXiv 1908.03265, algorithm 2) of Xiong et al. 2020, section 4."""

import math
import shutil
from types import SimpleNamespace

import fairseq.optim
import pytest
import torch
from fairseq.optim import OPTIMIZER_REGISTRY
from sentences import sentence_of

from fairseq_lnplugin.radam import FairseqRAdam, RAdam, RAdamConfig, rho

BETAS = (0.9, 0.98)


def config(**flags):
    """The flags of ``--optimizer radam``, with fairseq's and the given values."""
    return RAdamConfig(**{"lr": [0.01], "adam_betas": str(BETAS), **flags})


def gradients(updates, dtype=torch.float64):
    """Made-up gradients, one an update, of very different sizes."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.logspace(-3, 1, 50, dtype=torch.float64)
    return [(torch.randn(50, generator=generator, dtype=torch.float64) * sizes).to(dtype) for _ in range(updates)]


def drive(optimizer, weight, grads):
    """The weight after each update, as a list of float64 tensors."""
    trail = []
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
        trail.append(weight.detach().double().clone())
    return trail


def weight_of(dtype=torch.float64):
    """A weight to train."""
    return torch.nn.Parameter(torch.linspace(-1, 1, 50, dtype=torch.float64).to(dtype))


def test_moments_are_averaged_over_workers_as_fairseqs_adam_does(monkeypatch):
    """--use-bmuf: two workers with equal moments have them after it, too."""
    weight = weight_of()
    optimizer = FairseqRAdam(config(), [weight])
    drive(optimizer, weight, gradients(7))
    moments = {name: value.clone() for name, value in optimizer.optimizer.state[weight].items()}
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: tensor.mul_(3))  # as if the other had twice as much
    optimizer.average_params()
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizer.optimizer.state[weight][name], 1.5 * moments[name])


def algorithm_2(weight, grads, lr, beta1, beta2, eps, decay, degenerate):
    """The paper's algorithm 2 written down again, with decoupled weight decay; the weight after each update."""
    theta, m, v = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    rho_inf = 2 / (1 - beta2) - 1
    trail = []
    for t, grad in enumerate(grads, 1):
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        rho_t = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        m_hat = m / (1 - beta1**t)
        if rho_t > 5:
            r = math.sqrt((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t))
            theta = (1 - lr * decay) * theta - lr * r * m_hat * math.sqrt(1 - beta2**t) / (v.sqrt() + eps)
        elif degenerate == "sgd":
            theta = (1 - lr * decay) * theta - lr * m_hat
        trail.append(theta)
    return trail


# The rule


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("degenerate", ["skip", "sgd"])
@pytest.mark.parametrize("beta2", [0.98, 0.999])
def test_every_update_is_algorithm_2s(beta2, degenerate, decay):
    """Twelve updates in float64 against the paper's equations, through both kinds of update."""
    weight = weight_of()
    expected = algorithm_2(weight, gradients(12), 0.01, 0.9, beta2, 1e-6, decay, degenerate)
    flags = {"adam_betas": f"(0.9, {beta2})", "adam_eps": 1e-6, "weight_decay": decay, "radam_degenerate": degenerate}
    ours = drive(FairseqRAdam(config(**flags), [weight]), weight, gradients(12))
    torch.testing.assert_close(torch.stack(ours), torch.stack(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_with_sgd_every_update_is_torchs_to_the_bit(decay):
    """--radam-degenerate sgd against torch.optim.RAdam in a bare loop, float32."""
    weight, twin = weight_of(torch.float32), weight_of(torch.float32)
    torchs = torch.optim.RAdam([twin], lr=0.01, betas=BETAS, weight_decay=decay, decoupled_weight_decay=True)
    ours = FairseqRAdam(config(radam_degenerate="sgd", weight_decay=decay), [weight])
    grads = gradients(12, torch.float32)
    assert torch.equal(torch.stack(drive(ours, weight, grads)), torch.stack(drive(torchs, twin, grads)))


def test_with_skip_the_first_five_updates_move_moments_but_no_weight():
    """The official code's: no step, no decay; from update 6 on the moments are torch's."""
    weight, twin = weight_of(torch.float32), weight_of(torch.float32)
    start = weight.detach().clone()
    ours = RAdam([weight], betas=BETAS, weight_decay=0.1)
    torchs = torch.optim.RAdam([twin], betas=BETAS)
    drive(torchs, twin, gradients(5, torch.float32))
    drive(ours, weight, gradients(5, torch.float32))
    assert torch.equal(weight, start)
    for moment in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(ours.state[weight][moment], torchs.state[twin][moment])
    drive(ours, weight, gradients(1, torch.float32))
    assert not torch.equal(weight, start)


def test_without_the_flag_the_first_five_updates_leave_a_weight_as_it_is():
    """--radam-degenerate is skip, as in the official code."""
    weight = weight_of()
    start = weight.detach().clone()
    trail = drive(FairseqRAdam(config(), [weight]), weight, gradients(6))
    assert all(torch.equal(moved, start) for moved in trail[:5]) and not torch.equal(trail[5], start)


@pytest.mark.parametrize("beta2", [0.98, 0.99, 0.999])
def test_the_adaptive_updates_begin_with_update_6(beta2):
    """rho_t > 5."""
    assert rho(5, beta2) <= 5 < rho(6, beta2)


def test_a_weight_that_had_no_gradient_is_at_an_earlier_update():
    """LayerDrop: its own count of updates decides, not the neighbour's."""
    often, seldom = weight_of(), weight_of()
    optimizer = RAdam([often, seldom], betas=BETAS)
    start = seldom.detach().clone()
    for update, grad in enumerate(gradients(10), 1):
        often.grad, seldom.grad = grad.clone(), grad.clone() if update % 2 else None
        optimizer.step()
    assert torch.equal(seldom, start)  # five updates of ten
    assert not torch.equal(often, start)


# fairseq's side


def test_the_name_is_the_plug_ins_own():
    """No module of fairseq is called radam, and nobody else registers one or our class's name."""
    assert OPTIMIZER_REGISTRY["radam"] is FairseqRAdam
    assert not hasattr(fairseq.optim, "radam")
    assert [cls.__name__ for cls in OPTIMIZER_REGISTRY.values()].count("FairseqRAdam") == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_have_float32_moments(dtype):
    """--memory-efficient-fp16: one update is float32's, rounded once."""
    half = weight_of(dtype)
    full = torch.nn.Parameter(half.detach().float())
    optimizer = RAdam([half], skip_degenerate=False)
    grad = gradients(1, dtype)[0]
    drive(optimizer, half, [grad])
    drive(RAdam([full], skip_degenerate=False), full, [grad.float()])
    assert {optimizer.state[half][moment].dtype for moment in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert torch.equal(half, full.to(dtype))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"adam_betas": "0.9"}, "--adam-betas takes two numbers such as '(0.9, 0.98)', but is 0.9"),
        ({"adam_betas": "(0.9, 0.98, 0.99)"}, "--adam-betas takes two numbers"),
        ({"adam_betas": "(0.9, "}, "--adam-betas takes two numbers"),
        ({"adam_betas": "__import__('os')"}, "--adam-betas takes two numbers"),
        ({"adam_betas": "(1.0, 0.98)"}, "--adam-betas for radam must lie in [0, 1) and (2/3, 1), but are 1 and 0.98"),
        ({"adam_betas": "(-0.1, 0.98)"}, "must lie in [0, 1) and (2/3, 1)"),
        ({"adam_betas": "(0.9, 0.5)"}, "must lie in [0, 1) and (2/3, 1), but are 0.9 and 0.5"),
        ({"adam_betas": "(0.9, 1.0)"}, "must lie in [0, 1) and (2/3, 1)"),
        ({"adam_eps": 0.0}, "--adam-eps must be above 0, but is 0"),
        ({"adam_eps": math.nan}, "--adam-eps must be above 0, but is nan"),
        ({"weight_decay": -0.1}, "--weight-decay must be 0 or more, but is -0.1"),
        ({"radam_degenerate": "adam"}, "--radam-degenerate must be skip or sgd, but is adam"),
    ],
)
def test_a_wrong_setting_ends_in_one_sentence(flags, sentence):
    """When the optimizer is made."""
    assert sentence in sentence_of(FairseqRAdam, config(**flags), [weight_of()])


def test_the_state_of_another_optimizer_is_refused_in_a_sentence():
    """Adam's moments would fit, and under fp16 fairseq compares only the wrappers' names."""
    weight = weight_of()
    adam = torch.optim.Adam([weight])
    with pytest.raises(SystemExit, match="--reset-optimizer"):
        FairseqRAdam(config(), [weight]).load_state_dict(adam.state_dict())


# Real training


def arguments(data_bin, save_dir, *flags):
    """A fairseq-train command line of the tiny model, ten updates an epoch."""
    args = [data_bin, "--save-dir", save_dir, "--arch", "transformer_ln_study_tiny", "--batch-size", 30, "--cpu"]
    args += ["--criterion", "label_smoothed_cross_entropy", "--optimizer", "radam", "--adam-betas", "(0.9, 0.98)"]
    args += ["--lr", 1e-3, "--clip-norm", 0, "--disable-validation", "--seed", 1, "--num-workers", 0]
    return [*args, "--required-batch-size-multiple", 1, "--max-update", 9, "--weight-decay", 0.01, *flags]


PRECISIONS = {
    "fp32": (),
    "memory-efficient-fp16": ("--memory-efficient-fp16", "--fp16-init-scale", 128),
}


@pytest.fixture(scope="module", params=PRECISIONS)
def unbroken(request, data_bin, fairseq_train, tmp_path_factory):
    """Nine updates with a checkpoint after the seventh: save folder and the flags of its precision."""
    save_dir = tmp_path_factory.mktemp("unbroken")
    flags = PRECISIONS[request.param]
    run = fairseq_train(arguments(data_bin, save_dir, *flags, "--save-interval-updates", 7))
    assert run.rc == 0, run.log
    return SimpleNamespace(save_dir=save_dir, flags=flags)


def test_a_resumed_run_ends_in_the_weights_of_the_unbroken_one(unbroken, data_bin, fairseq_train, tmp_path):
    """Saved after update 7, loaded, two more updates with dropout: weights and moments equal to the bit."""
    shutil.copy(unbroken.save_dir / "checkpoint_1_7.pt", tmp_path / "checkpoint_last.pt")
    run = fairseq_train(arguments(data_bin, tmp_path, *unbroken.flags))
    assert run.rc == 0, run.log
    assert "@ 7 updates" in run.log
    ours, theirs = (torch.load(folder / "checkpoint_last.pt") for folder in (tmp_path, unbroken.save_dir))
    assert all(torch.equal(ours["model"][name], weight) for name, weight in theirs["model"].items())
    ours, theirs = (state["last_optimizer_state"]["state"] for state in (ours, theirs))
    for i, state in theirs.items():
        assert int(ours[i]["step"]) == int(state["step"]) == 9
        assert all(torch.equal(ours[i][moment], state[moment]) for moment in ("exp_avg", "exp_avg_sq"))
