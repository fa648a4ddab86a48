"""RAdam (Liu et al. 2019, arXiv 1908.03265) for fairseq: torch's, with the official code's first updates.

With rho_inf = 2 / (1 - beta2) - 1 and rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t), update t is Adam's
with rate lr r_t, where r_t^2 = (rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t), as long as
rho_t > 5: from update 6 on for beta2 = 0.98 and 0.999 alike. For the updates before there are two readings,
see ``DEGENERATE``.
"""
# ruff: noqa: UP006, UP035 - fairseq's command line is built from these fields and knows typing's List only

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any, List

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II
from torch.optim.radam import radam

#: The updates with rho_t <= 5. ``skip``: the moments move, the weights do not (official code with
#: degenerated_to_sgd=False); ``sgd``: a plain momentum step of size lr (the paper's algorithm 2, and torch).
DEGENERATE = ("skip", "sgd")


def rho(update, beta2):
    """Length rho_t of the approximated moving average at update t (arXiv 1908.03265, algorithm 2)."""
    return 2 / (1 - beta2) - 1 - 2 * update * beta2**update / (1 - beta2**update)


class RAdam(torch.optim.RAdam):
    """torch's RAdam with decoupled weight decay, a choice for the first updates, and float32 moments.

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
            params = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in params):
                raise RuntimeError("RAdam has no rule for sparse gradients")
            # Weights that had no gradient in some updates (LayerDrop) are at another t than the rest.
            early = [group["skip_degenerate"] and rho(self._next(p), group["betas"][1]) <= 5 for p in params]
            # At rate 0 torch moves the moments and neither steps nor decays: the official skipped update.
            self._update([p for p, skip in zip(params, early, strict=True) if skip], 0.0, group)
            self._update([p for p, skip in zip(params, early, strict=True) if not skip], group["lr"], group)
        return loss

    def _next(self, p):
        """The number t, from 1, of a weight's coming update."""
        return int(self.state[p]["step"]) + 1 if "step" in self.state[p] else 1

    def _update(self, params, lr, group):
        """One update of some weights of a group at rate ``lr``, in float32."""
        full = [p.float() if p.dtype in (torch.float16, torch.bfloat16) else p for p in params]
        for p, weight in zip(params, full, strict=True):
            state = self.state[p]
            if not state:
                state["step"] = torch.tensor(0.0)
            # `to`: after a resume moments are in half precision (torch casts them) or on the CPU (fairseq's fp16)
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = state[moment].to(weight) if moment in state else torch.zeros_like(weight)
        states = [self.state[p] for p in params]
        radam(
            full,
            [p.grad.to(weight.dtype) for p, weight in zip(params, full, strict=True)],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            lr=lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled_weight_decay=True,
        )
        for p, weight in zip(params, full, strict=True):
            if weight is not p:
                p.copy_(weight)


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


def betas_of(text):
    """The two decay rates from ``--adam-betas``: text such as ``(0.9, 0.98)`` or a pair of numbers.

    Raises:
        SystemExit: not two numbers in [0, 1), or a beta2 for which RAdam never takes an adaptive step.

    """
    try:
        beta1, beta2 = (float(beta) for beta in (ast.literal_eval(text) if isinstance(text, str) else text))
    except (ValueError, SyntaxError, TypeError):
        raise SystemExit(f"--adam-betas takes two numbers such as '(0.9, 0.98)', but is {text}") from None
    if not (0 <= beta1 < 1 and 2 / 3 < beta2 < 1):
        raise SystemExit(f"--adam-betas for radam must lie in [0, 1) and (2/3, 1), but are {beta1:g} and {beta2:g}")
    return beta1, beta2


@register_optimizer("radam", dataclass=RAdamConfig)
class FairseqRAdam(FairseqOptimizer):
    """``--optimizer radam``, for fp32, fp16, memory-efficient fp16 and amp, and for every ``--lr-scheduler``.

    Raises:
        SystemExit: a value out of range.

    """

    def __init__(self, cfg, params):
        super().__init__(cfg)
        if not cfg.adam_eps > 0:
            raise SystemExit(f"--adam-eps must be above 0, but is {cfg.adam_eps:g}")
        if not cfg.weight_decay >= 0:
            raise SystemExit(f"--weight-decay must be 0 or more, but is {cfg.weight_decay:g}")
        if str(cfg.radam_degenerate) not in DEGENERATE:
            raise SystemExit(f"--radam-degenerate must be skip or sgd, but is {cfg.radam_degenerate}")
        self._optimizer = RAdam(params, **self.optimizer_config)

    @property
    def optimizer_config(self):
        """Keyword arguments of :class:`RAdam`."""
        return {
            "lr": self.cfg.lr[0] if isinstance(self.cfg.lr, Sequence) else self.cfg.lr,
            "betas": betas_of(self.cfg.adam_betas),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
            "skip_degenerate": str(self.cfg.radam_degenerate) == "skip",
        }

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """Continue from a checkpoint.

        Raises:
            SystemExit: the state is that of another optimizer; fairseq does not see this under fp16.

        """
        if any("skip_degenerate" not in group for group in state_dict["param_groups"]):
            raise SystemExit(
                "the checkpoint was trained with another optimizer than --optimizer radam; "
                "add --reset-optimizer to start with fresh moments, or use another --save-dir"
            )
        super().load_state_dict(state_dict, optimizer_overrides)
