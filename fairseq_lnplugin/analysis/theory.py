"""Lemmas 1 to 3, theorem 1 and appendix F of the paper as numerical claims, checked by drawing weights of the paper's own model.

The paper's setting (section 3.3) is built here in plain torch, apart from the training model: one head, W_Q = W_K = 0, all other
matrices Gaussian with Xavier's variance 2 / (n_in + n_out), no biases, LN without gain, bias and epsilon, Gaussian inputs. An FFN
of inner width r d has E||FFN(x)||^2 = rho ||x||^2 with rho = 2r / (1 + r)^2; the paper's square case is r = 1, rho = 1/2.

The range around a claimed number is wide enough for the finite width d, and so narrow that the errors which tests/test_theory.py
plants fall out of it.
"""

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fairseq_lnplugin.analysis import paper
from fairseq_lnplugin.study import intervals
from fairseq_lnplugin.study.wording import position_title

#: Inner width of the FFN / d: the paper's proof, its IWSLT14 size, the base size.
RATIOS = (1, 2, 4)
#: Positions in a sentence of the theory's model.
TOKENS = 8
#: The theory's vocabulary, fixed while d varies.
TYPES = 500
#: Numbers in one weight tensor at a time: memory stays the same for every width and number of draws.
CHUNK = 4_000_000

#: Of a check, in the order of the report; see :attr:`Check.verdict`.
VERDICTS = ("holds", "FAILS", "differs", "undecided", "measured")


class Curve(NamedTuple):
    """What stands behind an exponent, for the figure: the mean norm at each ``x``, the number of layers "L" or the width "d"."""

    position: str
    x: str
    points: dict[int, intervals.Estimate]


class Check(NamedTuple):
    """One claim, what was measured and what the claim allows (None: nothing is claimed).

    ``strict`` is False for what nothing guarantees here: an assumption of the theory about the training model, say.
    """

    item: str
    claim: str
    setting: str
    measured: intervals.Estimate
    allowed: tuple[float, float] | None
    note: str = ""
    curve: Curve | None = None
    strict: bool = True

    @property
    def verdict(self):
        """One of :data:`VERDICTS`: the whole interval decides, and one across an end of the range fails what is proven."""
        if self.allowed is None:
            return "measured"
        if self.measured.within(*self.allowed):
            return "holds"
        if self.strict:
            return "FAILS"
        return "differs" if self.measured.outside(*self.allowed) else "undecided"


def of_worst(item, claim, setting, estimates, allowed, note="", strict=True):
    """The :class:`Check` of what is claimed of each of ``estimates``, a dict by name: that of the worst, which its note names."""
    name = intervals.worst(estimates, *allowed)
    note = "; ".join(part for part in (note, f"worst: {name}") if part)
    return Check(item, claim, setting, estimates[name], allowed, note, strict=strict)


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


def inputs(draws, dim, generator, tokens=TOKENS):
    """Gaussian sentences ``(draws, tokens, dim)``."""
    return torch.randn(draws, tokens, dim, generator=generator, dtype=torch.float64)


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
        x, rows = inputs(count, dim, generator, tokens), []
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
        x, measured = inputs(count, dim, generator, tokens), []
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
            Check(
                "lemma 1",
                "E||ReLU(X)||^2 / (s^2 d) = 1/2",
                f"d = {dim}, s = {scale:g}",
                intervals.mean(values),
                around(0.5, 0.02),
            )
        )
    return checks


def lemma_2(generator, draws=1200, layers=6, dim=64):
    """Post-LN: E||x^{post,5}||^2 = (1 + rho) d in every layer. Pre-LN: (1 + rho l) d <= E||x_l||^2 <= (1 + (1 + rho) l) d."""
    checks = []
    for ratio in RATIOS:
        square = ", the paper's 3/2" if ratio == 1 else ""
        setting = f"d = {dim}, FFN width {ratio}d, layers 1 to {layers}"
        rows = squared_norms("post", layers, dim, ratio, draws, generator)
        means = {f"layer {layer}": intervals.mean(row.mean(-1)) for layer, row in enumerate(rows, 1)}
        claim = f"Post-LN: E||x^post,5||^2 / d = 1 + rho = {1 + rho(ratio):.3f}{square}"
        checks.append(of_worst("lemma 2", claim, setting, means, around(1 + rho(ratio), 0.03)))
        rows = squared_norms("pre", layers, dim, ratio, draws, generator)
        for layer in (1, layers):
            low, high = 1 + rho(ratio) * layer, 1 + (1 + rho(ratio)) * layer
            claim = f"Pre-LN: 1 + rho l <= E||x_l||^2 / d <= 1 + (1 + rho) l, rho = {rho(ratio):.3f}"
            checks.append(
                Check(
                    "lemma 2",
                    claim,
                    f"d = {dim}, FFN width {ratio}d, l = {layer}",
                    intervals.mean(rows[layer - 1].mean(-1)),
                    (low, high),
                )
            )
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
        Check("lemma 3", "||J_LN(x)||_2 ||x|| / sqrt(d) is near 1 on average", setting, intervals.mean(ratios), (0.99, 1.1)),
        Check(
            "lemma 3",
            "exponent of ||J_LN(x)||_2 in sqrt(d) / ||x|| is 1",
            setting,
            intervals.exponent(bounds, norms),
            around(1.0, 0.02),
        ),
    ]


def theorem_1(generator, draws=100, depths=(4, 8, 16, 32, 64, 128), dims=(32, 64, 128, 256), dim=64, layers=6):
    """dL/dW2 of the last layer: Post-LN O(d sqrt(ln d)), with no L in it, Pre-LN O(d sqrt(ln d / L))."""
    checks = []
    norms = {
        position: {depth: gradient_norms(position, depth, dim, draws, generator)[0] for depth in depths} for position in LAYERS
    }
    post, pre = (Curve(position, "L", {x: intervals.mean(y) for x, y in norms[position].items()}) for position in ("post", "pre"))
    setting = f"d = {dim}, L = {', '.join(map(str, depths))}"
    measured = exponent(norms["post"])
    checks.append(Check("theorem 1", "Post-LN: no L in the norm, exponent 0", setting, measured, (-0.05, 0.05), curve=post))

    deep = {
        depth: values for depth, values in norms["pre"].items() if depth >= 16
    }  # the bound's 1 + L/2 is like L for large L only
    setting = f"d = {dim}, L = {', '.join(map(str, deep))}"
    note = "||x_L||^2 grows a little faster than L at first, as attention makes the positions alike"
    claim = "Pre-LN: falls as L^(-1/2) for large L, exponent -0.5"
    checks.append(Check("theorem 1", claim, setting, exponent(deep), (-0.58, -0.42), note, pre))
    mean_squares = {depth: squared_norms("pre", depth, dim, 1, max(draws // 4, 1), generator)[-1].mean().item() for depth in deep}
    claim = "Pre-LN: falls as the root of lemma 2's E||x_L||^2, exponent -0.5"
    measured = exponent({mean_squares[depth]: values for depth, values in deep.items()})
    checks.append(Check("theorem 1", claim, setting, measured, (-0.55, -0.45)))

    for position in LAYERS:
        norms = {width: gradient_norms(position, layers, width, draws // 2, generator)[0] for width in dims}
        claim = f"{position_title(position)}: exponent in d of norm / sqrt(ln d); the theorem: at most 1"
        setting = f"L = {layers}, d = {', '.join(map(str, dims))}, {TYPES} types"
        measured = exponent({width: values / math.sqrt(math.log(width)) for width, values in norms.items()})
        points = {width: intervals.mean(values) for width, values in norms.items()}
        note = "no claim: an upper bound that a model without any LN keeps as well"
        checks.append(Check("theorem 1", claim, setting, measured, None, note, Curve(position, "d", points)))
    return checks


def exponent(norms):
    """The exponent of norms ``{x: tensor of one value a draw}`` in x."""
    points = [(x, norm) for x, values in norms.items() for norm in values.tolist()]
    return intervals.exponent(*zip(*points, strict=True))


def appendix_f(generator, draws=300, dim=128):
    """Post-LN: a factor 1 / (1 + rho) in the squared gradient for each FFN sub-layer away from the output; Pre-LN: none."""
    checks = []
    for ratio in RATIOS:
        factor, setting = 1 / (1 + rho(ratio)), f"d = {dim}, FFN width {ratio}d"
        square = ", the paper's 2/3" if ratio == 1 else ""
        x = layer_norm(torch.randn(1, 1, dim, generator=generator, dtype=torch.float64))
        weights = [draw_weights(count, dim, ratio, generator) for count in chunks(draws, dim, ratio)]
        # two positions a draw: a Jacobian of each is d x d
        sums = torch.cat([post_ln(inputs(len(part.w1), dim, generator), part)[0][:, :2] for part in weights])
        squares = torch.linalg.matrix_norm(layer_norm_jacobian(sums), 2).pow(2).mean(-1)
        claim = f"Post-LN: E||J_LN(x^post,5)||_2^2 = 1 / (1 + rho) = {factor:.3f}{square}"
        checks.append(Check("appendix F", claim, setting, intervals.mean(squares), around(factor, 0.03)))

        # two independent draws: E<J, J'> = ||E J||_F^2, without the branch's own contribution, whose mean is 0
        for position, expected in (("post", factor), ("pre", 1.0)):
            jacobians = torch.cat([ffn_jacobian(position, x, part) for part in weights])
            rank = dim - 2 if position == "post" else dim  # LN takes away two directions, the mean and the length
            pairs = (jacobians[0::2] * jacobians[1::2]).sum((-1, -2)) / rank
            claim = f"{position_title(position)}: mean Jacobian of an FFN sub-layer, ||E J||_F^2 / rank = {expected:.3f}"
            checks.append(Check("appendix F", claim, setting, intervals.mean(pairs), around(expected, 0.04)))

        branch = torch.cat([branch_jacobian(x, part) for part in weights]) + torch.eye(dim, dtype=x.dtype)
        claim = f"the branch gives back what the LN takes: E||I + J_FFN||_F^2 / d = 1 + rho = {1 + rho(ratio):.3f}"
        squares = branch.pow(2).sum((-1, -2)) / dim
        checks.append(
            Check(
                "appendix F", claim, setting, intervals.mean(squares), around(1 + rho(ratio), 0.03), "not in the paper, see below"
            )
        )
    return checks


def own_factors(generator, draws=60, dim=64, layers=12):
    """By how much W2's gradient norm itself changes for each layer away from the output, branches and all."""
    checks = []
    for position, tokens in itertools.product(LAYERS, (1, TOKENS)):
        norms = gradient_norms(position, layers, dim, draws, generator, only_last=False, tokens=tokens)
        upper = norms[layers // 2 :]
        away = range(len(upper) - 1, -1, -1)
        measured = intervals.mean_factor((away, of_draw) for of_draw in upper.T.tolist())
        expected = appendix_factor(position, rho(1))
        claim = f"{position_title(position)}: the gradient norm's own factor a layer away from the output is {expected:.3f}"
        setting = f"d = {dim}, L = {layers}, upper half, positions in a sentence: {tokens}"
        checks.append(
            Check("appendix F", claim, setting, measured, around(expected, 0.03), "a reading beyond the proof", strict=False)
        )
    return checks


def appendix_factor(position, value):
    """Appendix F's factor in the gradient's norm, for each layer away from the output, with ``value`` as rho."""
    return 1 / math.sqrt(1 + value) if position == "post" else 1.0


def branch_jacobian(x, weights):
    """Jacobians ``(draws, d, d)`` of the FFN at the point ``x (1, 1, d)``, output by input."""
    passes = (x @ weights.w1 > 0).to(x.dtype).transpose(-1, -2)  # (draws, r d, 1): where ReLU lets through
    return weights.w2.transpose(-1, -2) @ (passes * weights.w1.transpose(-1, -2))


def ffn_jacobian(position, x, weights):
    """Jacobians ``(draws, d, d)`` of the FFN sub-layer with its LN and its residual at the point ``x (1, 1, d)``."""
    eye = torch.eye(x.size(-1), dtype=x.dtype)
    if position == "pre":
        return eye + branch_jacobian(layer_norm(x), weights) @ layer_norm_jacobian(x[:, 0])
    return layer_norm_jacobian((x + ffn(x, weights))[:, 0]) @ (eye + branch_jacobian(x, weights))


def boundedness(generator, draws=160, dim=512, layers=6):
    """(epsilon, delta)-bounded, P[(Z - EZ) / EZ <= epsilon] >= 1 - delta: theorem 1's assumption, which nothing proves."""
    checks = []
    for position, title in (("post", "x^post,5 of the last layer"), ("pre", "the last layer's output")):
        z = squared_norms(position, layers, dim, 1, draws, generator)[-1]
        above = (z > (1 + paper.EPSILON) * z.mean()).double().mean(-1)
        claim = f"{title}: P[Z > {1 + paper.EPSILON:g} EZ] <= {paper.DELTA:g}"
        setting = f"d = {dim}, L = {layers}"
        epsilon = z.flatten().quantile(1 - paper.DELTA).item() / z.mean().item() - 1
        note = f"smallest epsilon at delta = {paper.DELTA:g}: {epsilon:.3f}"
        measured, allowed = intervals.share(above), (-math.inf, paper.DELTA)
        checks.append(Check(paper.BOUNDED, claim, setting, measured, allowed, note, strict=False))
    return checks


#: In the order of the report.
CHECKS = (lemma_1, lemma_2, lemma_3, theorem_1, appendix_f, own_factors, boundedness)
