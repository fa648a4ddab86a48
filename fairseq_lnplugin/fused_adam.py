"""Adam in one pass over memory, equal to fairseq's ``--optimizer adam``."""

import torch
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig


class FusedAdam(torch.optim.AdamW):
    """torch's fused AdamW with fairseq's epsilon.

    With m, v the running means and c1 = 1 - beta1^t, c2 = 1 - beta2^t, fairseq moves a weight by
    ``lr sqrt(c2) / c1 * m / (sqrt(v) + eps)``, torch by ``lr / c1 * m / (sqrt(v / c2) + eps)``: the same with torch's eps set to
    ``eps / sqrt(c2)`` at update t. Weight decay is decoupled in both.
    """

    def __init__(self, params, lr, betas, eps, weight_decay):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    def load_state_dict(self, state_dict):
        """As torch's; a state of fairseq's adam, which has no such setting, goes on in one kernel too."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["fused"] = True

    def step(self, closure=None):
        """One update; ``closure`` as in torch."""
        host_eps = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            state = next((self.state[p] for p in group["params"] if p in self.state and "step" in self.state[p]), None)
            update = 1 + (int(state["step"]) if state else 0)
            group["eps"] /= (1 - group["betas"][1] ** update) ** 0.5
        try:
            return super().step(closure)
        finally:
            for group, eps in zip(self.param_groups, host_eps, strict=True):
                group["eps"] = eps


@register_optimizer("fused_adam", dataclass=FairseqAdamConfig)
class FairseqFusedAdam(FairseqAdam):
    """``--optimizer fused_adam``: the flags of fairseq's adam, one kernel for all parameters.

    Raises:
        SystemExit: a flag that only fairseq's own Adam has.

    """

    def __init__(self, cfg, params):
        super(FairseqAdam, self).__init__(cfg)
        for flag in ("use_old_adam", "fp16_adam_stats"):
            if getattr(cfg, flag, False):
                raise SystemExit(f"--{flag.replace('_', '-')} is a flag of --optimizer adam; fused_adam has no such thing")
        self._optimizer = FusedAdam(params, **self.optimizer_config)

    @property
    def supports_flat_params(self):
        """Elementwise, so a flat copy of all parameters works (fp16)."""
        return True
