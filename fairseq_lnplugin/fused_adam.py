"""Adam in one pass over memory, equal to fairseq's ``--optimizer adam``; and what it shares with RAdam."""

import ast
from collections.abc import Sequence

import torch
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch.optim.adamw import adamw


def by_update(params, state):
    """The weights that have a gradient, by the number t, from 1, of their coming update.

    All are at one t but those that had no gradient in some updates (LayerDrop). ``state``: the optimizer's.
    """
    params = [p for p in params if p.grad is not None]
    if any(p.grad.is_sparse for p in params):
        raise RuntimeError("Adam has no rule for sparse gradients here")
    for p in params:  # on the weight's device, where the kernel wants it; fairseq's adam saves a plain number
        state[p]["step"] = torch.as_tensor(state[p].get("step", 0.0), dtype=torch.float32, device=p.device)
    groups = {}
    if params:
        for p, step in zip(params, torch.stack([state[p]["step"] for p in params]).tolist(), strict=True):
            groups.setdefault(int(step) + 1, []).append(p)
    return groups


def move(rule, params, state, betas, **settings):
    """One update by ``rule``, torch's function ``adamw`` or ``radam``, in float32 with float32 moments.

    ``params``, ``state``: as :func:`by_update` gives and takes them; ``settings``: further ones of the rule.
    """
    full = [p.float() if p.dtype in (torch.float16, torch.bfloat16) else p for p in params]
    for p, weight in zip(params, full, strict=True):
        # `to`: after a resume moments are in half precision (torch casts them) or on the CPU (fairseq's fp16)
        for moment in ("exp_avg", "exp_avg_sq"):
            state[p][moment] = state[p][moment].to(weight) if moment in state[p] else torch.zeros_like(weight)
    rule(
        full,
        [p.grad.to(weight.dtype) for p, weight in zip(params, full, strict=True)],
        [state[p]["exp_avg"] for p in params],
        [state[p]["exp_avg_sq"] for p in params],
        state_steps=[state[p]["step"] for p in params],
        beta1=betas[0],
        beta2=betas[1],
        **settings,
    )
    for p, weight in zip(params, full, strict=True):
        if weight is not p:
            p.copy_(weight)


def move_as_adam(params, state, update, betas, lr, eps, weight_decay):
    """Fairseq's Adam at update t by torch's fused kernel.

    With m, v the running means and c1 = 1 - beta1^t, c2 = 1 - beta2^t, fairseq moves a weight by
    ``lr sqrt(c2) / c1 * m / (sqrt(v) + eps)``, torch by ``lr / c1 * m / (sqrt(v / c2) + eps)``: the same with torch's eps set to
    ``eps / sqrt(c2)``. Weight decay is decoupled in both.
    """
    eps /= (1 - betas[1] ** update) ** 0.5
    kernel = {"max_exp_avg_sqs": [], "amsgrad": False, "maximize": False, "fused": True}
    move(adamw, params, state, betas, lr=lr, eps=eps, weight_decay=weight_decay, **kernel)


def settings_of(cfg, optimizer, above=None):
    """Keyword arguments of a torch optimizer from the flags that adam, fused_adam and radam share.

    ``cfg``: the flags; ``optimizer``: its name; ``above``: where beta2 has to be larger than this.

    Raises:
        SystemExit: a value out of range.

    """
    if not cfg.adam_eps > 0:
        raise SystemExit(f"--adam-eps must be above 0, but is {cfg.adam_eps:g}")
    if not cfg.weight_decay >= 0:
        raise SystemExit(f"--weight-decay must be 0 or more, but is {cfg.weight_decay:g}")
    beta1, beta2 = betas_of(cfg.adam_betas)
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and (above is None or beta2 > above)):
        second = "[0, 1)" if above is None else f"({above}, 1)"
        raise SystemExit(f"--adam-betas for {optimizer} must lie in [0, 1) and {second}, but are {beta1:g} and {beta2:g}")
    lr = cfg.lr[0] if isinstance(cfg.lr, Sequence) else cfg.lr
    return {"lr": lr, "betas": (beta1, beta2), "eps": cfg.adam_eps, "weight_decay": cfg.weight_decay}


def betas_of(text):
    """The two decay rates from ``--adam-betas``: text such as ``(0.9, 0.98)`` or a pair of numbers.

    Raises:
        SystemExit: not two numbers.

    """
    try:
        beta1, beta2 = (float(beta) for beta in (ast.literal_eval(text) if isinstance(text, str) else text))
    except (ValueError, SyntaxError, TypeError):
        raise SystemExit(f"--adam-betas takes two numbers such as '(0.9, 0.98)', but is {text}") from None
    return beta1, beta2


def refuse_state_of_another(optimizer):
    """Say that a checkpoint's moments are another optimizer's; fairseq does not see this under fp16.

    Raises:
        SystemExit: always.

    """
    raise SystemExit(
        f"the checkpoint was trained with another optimizer than --optimizer {optimizer}; "
        "add --reset-optimizer to start with fresh moments, or use another --save-dir"
    )


class FusedAdam(torch.optim.AdamW):
    """:func:`move_as_adam` for every weight."""

    supports_memory_efficient_fp16 = True
    supports_flat_params = True

    @torch.no_grad()
    def step(self, closure=None):
        """One update; ``closure`` as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for update, params in by_update(group["params"], self.state).items():
                settings = (group[name] for name in ("betas", "lr", "eps", "weight_decay"))
                move_as_adam(params, self.state, update, *settings)
        return loss


@register_optimizer("fused_adam", dataclass=FairseqAdamConfig)
class FairseqFusedAdam(FairseqAdam):
    """``--optimizer fused_adam``: the flags of fairseq's adam, one kernel for all parameters.

    Raises:
        SystemExit: a flag that only fairseq's own Adam has, or a value out of range.

    """

    def __init__(self, cfg, params):
        super(FairseqAdam, self).__init__(cfg)
        for flag in ("use_old_adam", "fp16_adam_stats"):
            if getattr(cfg, flag, False):
                raise SystemExit(f"--{flag.replace('_', '-')} is a flag of --optimizer adam; fused_adam has no such thing")
        self._optimizer = FusedAdam(params, **self.optimizer_config)

    @property
    def optimizer_config(self):
        """Keyword arguments of :class:`FusedAdam`."""
        return settings_of(self.cfg, "fused_adam")

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """Continue from a checkpoint of this optimizer or of fairseq's adam.

        Raises:
            SystemExit: the state is that of another optimizer, or has scaled moments in fp16.

        """
        # fairseq's own sgd and others have no betas, RAdam has one more setting than Adam
        if any("betas" not in group or "skip_degenerate" in group for group in state_dict["param_groups"]):
            refuse_state_of_another("fused_adam")
        if any("exp_avg_scale" in state for state in state_dict["state"].values()):
            raise SystemExit(
                "the checkpoint's moments are fp16 numbers with scales (--fp16-adam-stats), which fused_adam has not; go on with "
                "--optimizer adam --fp16-adam-stats, or add --reset-optimizer to start with fresh moments"
            )
        super().load_state_dict(state_dict, optimizer_overrides)
