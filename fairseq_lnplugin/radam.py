"""RAdam (Liu et al. 2019, arXiv 1908.03265) for fairseq, with the official code's first updates or torch's.

With rho_inf = 2 / (1 - beta2) - 1 and rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t), update t is Adam's
with rate lr r_t, where r_t^2 = (rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t), as long as
rho_t > 5: from update 6 on for beta2 = 0.98 and 0.999 alike. For the updates before there are two readings,
see ``DEGENERATE``.
"""
# ruff: noqa: UP006, UP035 - fairseq's command line is built from these fields and knows typing's List only

import dataclasses
from fractions import Fraction
from typing import Any, List

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from fairseq.optim.adam import FairseqAdam
from omegaconf import II
from torch.optim.radam import radam

from fairseq_lnplugin.fused_adam import by_update, move, move_as_adam, refuse_state_of_another, settings_of

#: The updates with rho_t <= 5. ``skip``: the moments move, the weights do not (official code with
#: degenerated_to_sgd=False); ``sgd``: a plain momentum step of size lr (the paper's algorithm 2, and torch).
DEGENERATE = ("skip", "sgd")


def rho(update, beta2):
    """Length rho_t of the approximated moving average at update t (arXiv 1908.03265, algorithm 2)."""
    return 2 / (1 - beta2) - 1 - 2 * update * beta2**update / (1 - beta2**update)


def rectification(update, beta2):
    """r_t, the factor on the rate of an adaptive update."""
    rho_t, rho_inf = rho(update, beta2), 2 / (1 - beta2) - 1
    return ((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t)) ** 0.5


class RAdam(torch.optim.RAdam):
    """RAdam with decoupled weight decay, a choice for the first updates, and float32 moments.

    An adaptive update is Adam's in one kernel; with ``sgd`` all updates are torch's own RAdam.

    Args:
        params: weights, or groups of them, as for any torch optimizer.
        lr: learning rate.
        betas: decay rates of the two moments; beta2 > 2/3, otherwise rho_t never exceeds 5.
        eps: added to sqrt(v).
        weight_decay: fraction of a weight, times lr, taken off at each update that moves weights.
        skip_degenerate: what :data:`DEGENERATE` calls ``skip``; False is ``sgd``.

    """

    supports_memory_efficient_fp16 = True
    supports_flat_params = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, skip_degenerate=True):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_weight_decay=True)
        self.defaults["skip_degenerate"] = skip_degenerate
        for group in self.param_groups:
            group.setdefault("skip_degenerate", skip_degenerate)

    @torch.no_grad()
    def step(self, closure=None):
        """One update; ``closure`` as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, eps, decay, betas = (group[name] for name in ("lr", "eps", "weight_decay", "betas"))
            for update, params in by_update(group["params"], self.state).items():
                if not group["skip_degenerate"]:  # Adam's kernel makes no momentum step
                    settings = {"lr": lr, "eps": eps, "weight_decay": decay, "decoupled_weight_decay": True}
                    move(radam, params, self.state, betas, **settings)
                elif rho(update, betas[1]) > 5:
                    r = rectification(update, betas[1])
                    move_as_adam(params, self.state, update, betas, lr * r, eps, decay / r)  # decay is not rectified
                else:  # at rate 0 the moments move, and weights neither step nor decay: the official skipped update
                    move_as_adam(params, self.state, update, betas, 0.0, eps, decay)
        return loss


@dataclasses.dataclass
class RAdamConfig(FairseqDataclass):
    """Flags of ``--optimizer radam``."""

    adam_betas: Any = dataclasses.field(default=(0.9, 0.999), metadata={"help": "decay rates of the two moments"})
    adam_eps: float = dataclasses.field(default=1e-8, metadata={"help": "epsilon, added to the root of the second moment"})
    weight_decay: float = dataclasses.field(default=0.0, metadata={"help": "weight decay, decoupled as in --optimizer adam"})
    radam_degenerate: ChoiceEnum(DEGENERATE) = dataclasses.field(
        default="skip",
        metadata={"help": "the first 5 updates: skip (no step, as RAdam's official code) or sgd (a momentum step, as torch)"},
    )
    lr: List[float] = II("optimization.lr")


@register_optimizer("radam", dataclass=RAdamConfig)
class FairseqRAdam(FairseqOptimizer):
    """``--optimizer radam``, for fp32, fp16, memory-efficient fp16 and amp, and for every ``--lr-scheduler``.

    Raises:
        SystemExit: a value out of range.

    """

    def __init__(self, cfg, params):
        super().__init__(cfg)
        if str(cfg.radam_degenerate) not in DEGENERATE:
            raise SystemExit(f"--radam-degenerate must be skip or sgd, but is {cfg.radam_degenerate}")
        self._optimizer = RAdam(params, **self.optimizer_config)

    @property
    def optimizer_config(self):
        """Keyword arguments of :class:`RAdam`."""
        # below beta2 = 2/3 rho_t never exceeds 5, and no update is adaptive
        return {
            **settings_of(self.cfg, "radam", above=Fraction(2, 3)),
            "skip_degenerate": str(self.cfg.radam_degenerate) == "skip",
        }

    average_params = FairseqAdam.average_params  # the moments have the same names; for --use-bmuf

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """Continue from a checkpoint.

        Raises:
            SystemExit: the state is that of another optimizer; fairseq does not see this under fp16.

        """
        if any("skip_degenerate" not in group for group in state_dict["param_groups"]):
            refuse_state_of_another("radam")
        super().load_state_dict(state_dict, optimizer_overrides)
