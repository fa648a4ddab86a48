"""Lemmas 1 to 3, theorem 1 and appendix F of the paper, checked by drawing weights; on its own model and on the one that trains.

    fairseq-ln theory --out theory
    fairseq-ln theory data-bin/iwslt14 --out theory        # also the training model's layers at initialization, on these data

The paper's setting (section 3.3) is built here in plain torch, apart from the training model: one head, W_Q = W_K = 0, all other
matrices Gaussian with Xavier's variance 2 / (n_in + n_out), no biases, LN without gain, bias and epsilon, Gaussian inputs. An FFN of
inner width r d has E||FFN(x)||^2 = rho ||x||^2 with rho = 2r / (1 + r)^2; the paper's square case is r = 1, rho = 1/2.

Every check has a 95 % interval, over draws of weights and inputs, and a verdict: *holds* if the whole interval lies in the range that the
claim allows, *FAILS* if not, *measured* where the paper claims nothing that could fail. A range around a number is wide enough for the
finite width d and far narrower than what another arrangement of the norms would give. Exit status 1 when a check fails.
"""

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fairseq_lnplugin.analysis import figures, intervals
from fairseq_lnplugin.weight_init import WEIGHT_INITS

#: Inner width of the FFN / d: the paper's proof, its IWSLT14 size, the base size.
RATIOS = (1, 2, 4)
#: Positions in a sentence of the theory's model.
TOKENS = 8
#: The theory's vocabulary, fixed while d varies.
TYPES = 500
#: Numbers in one weight tensor at a time: memory stays the same for every width and number of draws.
CHUNK = 4_000_000


class Check(NamedTuple):
    """One claim, what was measured and what the claim allows (None: nothing is claimed)."""

    item: str
    claim: str
    setting: str
    measured: intervals.Estimate
    allowed: tuple[float, float] | None
    note: str = ""

    @property
    def verdict(self):
        """``holds``, ``FAILS`` or ``measured``."""
        if self.allowed is None:
            return "measured"
        return "holds" if self.measured.within(*self.allowed) else "FAILS"


def around(value, share):
    """The range of ``value`` and ``share`` of it to both sides."""
    return value - share * abs(value), value + share * abs(value)


# -- The paper's model --


class Weights(NamedTuple):
    """The matrices of one layer for ``draws`` models at a time: ``(draws, n_in, n_out)``, applied from the right."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    w1: torch.Tensor
    w2: torch.Tensor


def rho(ratio):
    """E||FFN(x)||^2 / ||x||^2 of an FFN of inner width ``ratio`` d with Xavier's variance."""
    return 2 * ratio / (1 + ratio) ** 2


def xavier(draws, n_in, n_out, generator):
    """Matrices ``(draws, n_in, n_out)`` with entries N(0, 2 / (n_in + n_out))."""
    return torch.randn(draws, n_in, n_out, generator=generator, dtype=torch.float64) * math.sqrt(2 / (n_in + n_out))


def draw_weights(draws, dim, ratio, generator):
    """Fresh :class:`Weights` of a layer of width ``dim``."""
    zero = torch.zeros(draws, dim, dim, dtype=torch.float64)
    value, w1, w2 = (xavier(draws, *shape, generator) for shape in ((dim, dim), (dim, ratio * dim), (ratio * dim, dim)))
    return Weights(zero, zero, value, w1, w2)


def layer_norm(x):
    """LN over the last dimension, without gain, bias and epsilon: ``||LN(x)||^2 = d`` exactly."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / centred.pow(2).mean(-1, keepdim=True).sqrt()


def attention(x, weights):
    """Single-head attention of ``x (draws, tokens, dim)`` to itself."""
    scores = (x @ weights.query) @ (x @ weights.key).transpose(-1, -2) / math.sqrt(x.size(-1))
    return F.softmax(scores, dim=-1) @ (x @ weights.value)


def ffn(x, weights):
    """``ReLU(x W1) W2``."""
    return F.relu(x @ weights.w1) @ weights.w2


def post_ln(x, weights):
    """One Post-LN layer: x^{post,5} (the sum before the second LN) and the layer's output."""
    x = layer_norm(x + attention(x, weights))
    before = x + ffn(x, weights)
    return before, layer_norm(before)


def pre_ln(x, weights):
    """One Pre-LN layer: its output, twice (no LN stands between the sum and the next layer)."""
    x = x + attention(layer_norm(x), weights)
    x = x + ffn(layer_norm(x), weights)
    return x, x


LAYERS = {"post": post_ln, "pre": pre_ln}
#: What stands between the last layer and the prediction.
LAST = {"post": lambda x: x, "pre": layer_norm}


def chunks(draws, dim, ratio):
    """Numbers of draws to take at a time."""
    size = max(1, CHUNK // (ratio * dim * dim))
    while draws > 0:
        yield min(size, draws)
        draws -= size


def squared_norms(position, layers, dim, ratio, draws, generator, tokens=TOKENS):
    """``||x||^2 / d`` of each layer's sum (see :data:`LAYERS`) on Gaussian inputs: a tensor ``(layers, draws, tokens)``."""
    parts = []
    for count in chunks(draws, dim, ratio):
        x, rows = torch.randn(count, tokens, dim, generator=generator, dtype=torch.float64), []
        for _ in range(layers):
            before, x = LAYERS[position](x, draw_weights(count, dim, ratio, generator))
            rows.append(before.pow(2).mean(-1))
        parts.append(torch.stack(rows))
    return torch.cat(parts, dim=1)


def gradient_norms(position, layers, dim, draws, generator, only_last=True, ratio=1, tokens=TOKENS):
    """Frobenius norms of dL/dW2 of the last layer, or of every layer, one value a draw: ``(layers measured, draws)``.

    L: cross entropy per token of random targets under softmax(x W_emb), W_emb a Xavier matrix of :data:`TYPES` columns.
    """
    parts = []
    for count in chunks(draws, dim, ratio * (1 if only_last else layers)):
        x, measured = torch.randn(count, tokens, dim, generator=generator, dtype=torch.float64), []
        for layer in range(1, layers + 1):
            weights = draw_weights(count, dim, ratio, generator)
            if layer == layers or not only_last:
                measured.append(weights.w2.requires_grad_())
            _, x = LAYERS[position](x, weights)
        logits = LAST[position](x) @ xavier(count, dim, TYPES, generator)
        target = torch.randint(TYPES, (count, tokens), generator=generator)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / tokens
        parts.append(torch.stack([gradient.flatten(1).norm(dim=1) for gradient in torch.autograd.grad(loss, measured)]))
    return torch.cat(parts, dim=1)


def layer_norm_jacobian(x):
    """LN's Jacobian at ``x (..., d)``: ``sqrt(d)/||y|| (I - y y^T / ||y||^2)(I - 1 1^T / d)`` with y = x - mean(x)."""
    d = x.size(-1)
    y = x - x.mean(-1, keepdim=True)
    norm = y.norm(dim=-1, keepdim=True)[..., None]
    eye = torch.eye(d, dtype=x.dtype)
    unit = y[..., None] / norm
    return math.sqrt(d) / norm * ((eye - unit @ unit.transpose(-1, -2)) @ (eye - 1 / d))


# -- Checks on the paper's model --


def lemma_1(generator, draws=4000):
    """E||ReLU(X)||^2 = s^2 d / 2 for X ~ N(0, s^2 I_d)."""
    checks = []
    for dim, scale in ((64, 1.0), (512, 0.5), (512, 2.0)):
        x = scale * torch.randn(draws, dim, generator=generator, dtype=torch.float64)
        values = F.relu(x).pow(2).sum(-1) / (scale**2 * dim)
        checks.append(
            Check("lemma 1", "E||ReLU(X)||^2 / (s^2 d) = 1/2", f"d = {dim}, s = {scale:g}", intervals.mean(values), around(0.5, 0.02))
        )
    return checks


def lemma_2(generator, draws=600, layers=6, dim=64):
    """Post-LN: E||x^{post,5}||^2 = (1 + rho) d in every layer. Pre-LN: (1 + rho l) d <= E||x_l||^2 <= (1 + (1 + rho) l) d."""
    checks = []
    for ratio in RATIOS:
        square = ", the paper's 3/2" if ratio == 1 else ""
        setting = f"d = {dim}, FFN width {ratio}d, layers 1 to {layers}"
        means = [intervals.mean(row.mean(-1)) for row in squared_norms("post", layers, dim, ratio, draws, generator)]
        worst = max(means, key=lambda estimate: max(abs(end - 1 - rho(ratio)) for end in estimate))
        claim = f"Post-LN: E||x^post,5||^2 / d = 1 + rho = {1 + rho(ratio):.3f}{square}"
        checks.append(Check("lemma 2", claim, setting, worst, around(1 + rho(ratio), 0.03), "the layer farthest from the claim"))
        rows = squared_norms("pre", layers, dim, ratio, draws, generator)
        for layer in (1, layers):
            low, high = 1 + rho(ratio) * layer, 1 + (1 + rho(ratio)) * layer
            claim = f"Pre-LN: 1 + rho l <= E||x_l||^2 / d <= 1 + (1 + rho) l, rho = {rho(ratio):.3f}"
            checks.append(Check("lemma 2", claim, f"d = {dim}, FFN width {ratio}d, l = {layer}", intervals.mean(rows[layer - 1].mean(-1)), (low, high)))
    return checks


def lemma_3(generator, draws=30):
    """Spectral norm of LN's Jacobian: sqrt(d) / ||x - mean(x)|| exactly, and so O(sqrt(d) / ||x||)."""
    exact, ratios, bounds, norms = [], [], [], []
    for dim in (16, 64, 256):
        for _ in range(draws):
            scale = math.exp(torch.rand((), generator=generator).item() * 6 - 3)
            x = scale * torch.randn(dim, generator=generator, dtype=torch.float64)
            spectral = torch.linalg.matrix_norm(torch.autograd.functional.jacobian(layer_norm, x), 2).item()
            bound = math.sqrt(dim) / x.norm().item()
            exact.append(spectral * (x - x.mean()).norm().item() / math.sqrt(dim))
            ratios.append(spectral / bound)
            bounds.append(bound)
            norms.append(spectral)
    setting = f"d = 16, 64, 256; ||x|| / sqrt(d) from {math.exp(-3):.2f} to {math.exp(3):.0f}; autograd's Jacobian"
    return [
        Check("lemma 3", "||J_LN(x)||_2 ||x - mean(x)|| / sqrt(d) = 1", setting, intervals.mean(exact), (1 - 1e-9, 1 + 1e-9)),
        Check("lemma 3", "||J_LN(x)||_2 ||x|| / sqrt(d) is bounded, and near 1", setting, intervals.mean(ratios), (1.0, 1.1)),
        Check("lemma 3", "exponent of ||J_LN(x)||_2 in sqrt(d) / ||x|| is 1", setting, intervals.exponent(bounds, norms), around(1.0, 0.02)),
    ]


def points(norms_by_x):
    """The points ``(x, norm)`` of several draws each, as two lists."""
    pairs = [(x, norm) for x, norms in norms_by_x.items() for norm in norms.tolist()]
    return [x for x, _ in pairs], [norm for _, norm in pairs]


def theorem_1(generator, draws=40, depths=(4, 8, 16, 32, 64, 128, 256), dims=(32, 64, 128, 256), dim=64, layers=6):
    """dL/dW2 of the last layer: Post-LN O(d sqrt(ln d)), Pre-LN O(d sqrt(ln d / L)). Also gives the points, for the figure."""
    checks, drawn = [], {}
    exponents = {"post": 0.0, "pre": -0.5}
    deep = [depth for depth in depths if depth >= 32] if max(depths) >= 64 else depths
    for position, exponent in exponents.items():
        norms = {depth: gradient_norms(position, depth, dim, draws, generator)[0] for depth in depths}
        drawn[position, "L"] = {depth: intervals.mean(values) for depth, values in norms.items()}
        of_fit = deep if position == "pre" else depths  # 1 + L/2 is proportional to L for large L only
        measured = intervals.exponent(*points({depth: norms[depth] for depth in of_fit}))
        title = "Post-LN: no L in the norm, exponent 0" if position == "post" else "Pre-LN: falls as L^(-1/2) for large L"
        setting = f"d = {dim}, L = {', '.join(map(str, of_fit))}"
        checks.append(Check("theorem 1", title, setting, measured, (exponent - 0.05, exponent + 0.05)))
    for position in exponents:
        norms = {width: gradient_norms(position, layers, width, draws, generator)[0] for width in dims}
        drawn[position, "d"] = {width: intervals.mean(values) for width, values in norms.items()}
        scaled = {width: values / math.sqrt(math.log(width)) for width, values in norms.items()}
        title = f"{'Post' if position == 'post' else 'Pre'}-LN: norm / sqrt(ln d) grows at most as d"
        setting = f"L = {layers}, d = {', '.join(map(str, dims))}, {TYPES} types"
        checks.append(Check("theorem 1", title, setting, intervals.exponent(*points(scaled)), (-math.inf, 1.0), "the exponent; a bound, not a rate"))
    return checks, drawn


def appendix_f(generator, draws=300, dim=128, layers=12):
    """Post-LN: a factor 1 / (1 + rho) in the squared gradient for each FFN sub-layer away from the output; Pre-LN: none."""
    checks = []
    for ratio in RATIOS:
        factor = 1 / (1 + rho(ratio))
        square = ", the paper's 2/3" if ratio == 1 else ""
        setting = f"d = {dim}, FFN width {ratio}d"
        x = layer_norm(torch.randn(draws, 1, dim, generator=generator, dtype=torch.float64))
        sublayer = []
        for position in LAYERS:
            jacobians = []
            start = 0
            for count in chunks(draws, dim, ratio):
                jacobians.append(ffn_jacobian(position, x[:1], draw_weights(count, dim, ratio, generator)))
                start += count
            jacobians = torch.cat(jacobians)
            # two independent draws: E<J, J'> = ||E J||_F^2, without the branch's own contribution, whose mean is 0
            pairs = (jacobians[0::2][: draws // 2] * jacobians[1::2]).sum((-1, -2)) / (dim - 2 if position == "post" else dim)
            sublayer.append(intervals.mean(pairs))
        norms = squared_norms("post", 1, dim, ratio, draws, generator)[0]
        checks += [
            Check("appendix F", f"Post-LN: ||J_LN(x^post,5)||_2^2 = 1 / (1 + rho) = {factor:.3f}{square}", setting,
                  intervals.mean((1 / norms).mean(-1)), around(factor, 0.03)),
            Check("appendix F", f"Post-LN: mean Jacobian of an FFN sub-layer, ||E J||_F^2 / d = {factor:.3f}", setting,
                  sublayer[0], around(factor, 0.04)),
            Check("appendix F", "Pre-LN: mean Jacobian of an FFN sub-layer, ||E J||_F^2 / d = 1", setting, sublayer[1], around(1.0, 0.04)),
        ]  # fmt: skip
    for position, title in (("post", "Post-LN"), ("pre", "Pre-LN")):
        for tokens in (1, TOKENS):
            norms = gradient_norms(position, layers, 64, 60, generator, only_last=False, tokens=tokens)
            half = norms[layers // 2 :].log()
            layer = torch.arange(layers // 2, layers, dtype=torch.float64)[:, None].expand_as(half)
            fitted = intervals.slope(layer.flatten().tolist(), half.flatten().tolist())
            estimate = intervals.Estimate(*(math.exp(-value) for value in (fitted.value, fitted.high, fitted.low)))
            checks.append(
                Check("appendix F", f"{title}: the gradient's own factor for each layer away from the output", f"d = 64, L = {layers}, upper half, "
                      f"{tokens} token{'s' if tokens > 1 else ''}", estimate, None,
                      "the factor above stands beside the branches' own Jacobians")
            )  # fmt: skip
    return checks


def ffn_jacobian(position, x, weights):
    """Jacobians ``(draws, d, d)`` of the FFN sub-layer with its LN and its residual at the point ``x (1, 1, d)``."""
    eye = torch.eye(x.size(-1), dtype=x.dtype)
    if position == "pre":
        x_in, enter = layer_norm(x), layer_norm_jacobian(x[:, 0])
    else:
        x_in, enter = x, eye
    inner = (x_in @ weights.w1 > 0).to(x.dtype).transpose(-1, -2)  # (draws, r d, 1): where ReLU lets through
    branch = weights.w2.transpose(-1, -2) @ (inner * weights.w1.transpose(-1, -2)) @ enter
    if position == "pre":
        return eye + branch
    return layer_norm_jacobian((x + ffn(x, weights))[:, 0]) @ (eye + branch)


def boundedness(generator, draws=60, dim=512, layers=6):
    """(epsilon, delta)-bounded: P[(Z - EZ) / EZ <= 0.1] >= 1 - 0.125 for the squared norms of theorem 1's assumption."""
    checks = []
    for position, title in (("post", "x^post,5 of the last layer"), ("pre", "the last layer's output")):
        z = squared_norms(position, layers, dim, 1, draws, generator)[-1]
        above = (z > 1.1 * z.mean()).double().mean(-1)
        claim = f"{title}: P[Z > 1.1 EZ] <= 0.125"
        epsilon = z.flatten().quantile(0.875).item() / z.mean().item() - 1
        checks.append(Check("(0.1, 0.125)-bounded", claim, f"d = {dim}, L = {layers}", intervals.mean(above), (-math.inf, 0.125),
                            f"smallest epsilon at delta = 0.125: {epsilon:.3f}"))  # fmt: skip
    return checks


# -- Command --


def add_arguments(parser):
    """The flags of ``fairseq-ln theory``."""
    parser.add_argument("data", metavar="DATA", nargs="?", help="folder made by fairseq-preprocess, to check the training model on as well")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where THEORY.md, theory.tsv, theory.json and figures go")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all draws (default: %(default)s)")
    parser.add_argument("--arch", default="transformer_ln_study_iwslt_de_en", metavar="NAME", help="of the training model (default: %(default)s)")
    parser.add_argument(
        "--weight-init", default="xavier_uniform", choices=sorted(WEIGHT_INITS), help="of the training model (default: %(default)s)"
    )


def run(args):
    """Make all checks and write the report; returns 1 if a claim fails.

    Raises:
        SystemExit: DATA or --arch cannot be used, or --out cannot be written.

    """
    from fairseq_lnplugin.analysis import theory_on_model  # it needs fairseq; the theory does not

    began = time.monotonic()
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"fairseq-ln theory: {out} cannot be made ({error.strerror}); give another --out") from None
    model = theory_on_model.Models(args) if args.data else None
    generator = torch.Generator().manual_seed(args.seed)
    checks, drawn = [], {}
    for check in (lemma_1, lemma_2, lemma_3, theorem_1, appendix_f, boundedness):
        found = check(generator)
        if check is theorem_1:
            found, drawn = found
        checks += found
        tell(found)
    on_model = []
    if model:
        for found in model.checks():
            on_model += found
            tell(found)
    failed = sum(check.verdict == "FAILS" for check in checks + on_model)
    drawn = figures.theory(out / "figures", checks + on_model, drawn)
    seconds = time.monotonic() - began
    write_text(out / "theory.tsv", tsv(checks, on_model))
    write_text(out / "theory.json", json.dumps(as_json(checks, on_model, args), indent=1, allow_nan=False) + "\n")
    write_text(out / "THEORY.md", markdown(checks, on_model, model, args, drawn, seconds))
    logging.getLogger(__name__).info("wrote %s", out)
    print(f"{len(checks) + len(on_model)} checks, {failed} failed; see {out / 'THEORY.md'}")
    return 1 if failed else 0
