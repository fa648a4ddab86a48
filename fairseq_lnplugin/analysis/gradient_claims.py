"""What the paper says of figure 3 and of its hidden states, and whether it holds in what ``fairseq-ln gradients`` measured.

Each rule asks whether the whole 95 % interval over seeds of one number lies in a range (it holds), outside (it does not), or
across an end (it cannot be said). A claim about several numbers holds if it does for each, and in part if it does for some.
Verdicts are given for each init, since the paper has one and figure 3 here may have several.
"""

import math
from collections import defaultdict
from typing import NamedTuple

from fairseq_lnplugin.analysis import gradient_tables as tables
from fairseq_lnplugin.analysis import paper
from fairseq_lnplugin.study import intervals
from fairseq_lnplugin.study.claims import FAILS, HOLDS, IN_PART, UNKNOWN
from fairseq_lnplugin.study.tables import PAPER_MATRICES
from fairseq_lnplugin.study.wording import position_title
from fairseq_lnplugin.transformer_ln_study import STACKS

#: A factor this close to 1 a layer is "flat", and ones above that range "grow": 5 % a layer are 28 % from a stack's first layer
#: to its sixth, which a figure as large as the paper's just shows.
FLAT = 0.05
#: An exponent in the number of layers this close to 0 "stays", one below that range "falls": 0.1 are 8 % from 6 layers to 14.
STAYS = 0.1
#: "About" the norm of the paper's figure, which is read off a plot.
ABOUT = 0.1
#: "Very small" after the warm-up stage: this share of the same layer's norm before training.
SMALL = 0.25

RULES = (
    f"*flat*: a factor from a layer to the next within {100 * FLAT:g} % of 1; *grow*: a factor above {1 + FLAT:g} (both of the "
    "line through the logarithms of all of a stack's layers, on average and not for each pair of neighbours); *stays*: an "
    f"exponent in the number of layers within {STAYS:g} of 0; *falls*: one below {-STAYS:g}; *about*: within {100 * ABOUT:g} % "
    f"of the paper's number; *very small*: at most {SMALL:g} of the same layer's mean before training; *bounded*: at most "
    f"{paper.DELTA:g} of the tokens above {1 + paper.EPSILON:g} EZ, in every layer. The whole 95 % interval over seeds must lie "
    "in the range, or outside it for *does not hold*; across an end it *cannot be said*. A claim about several numbers holds "
    "in part if it holds for some."
)


def verdict(estimate, low, high):
    """Whether a number lies between ``low`` and ``high``, with its interval."""
    return HOLDS if estimate.within(low, high) else FAILS if estimate.outside(low, high) else UNKNOWN


def together(verdicts):
    """The verdict of a claim about several numbers."""
    if HOLDS in verdicts:
        return HOLDS if set(verdicts) == {HOLDS} else IN_PART
    return FAILS if FAILS in verdicts else UNKNOWN


class Finding(NamedTuple):
    """A claim with one init: its verdict and our numbers in words."""

    subject: str
    verdict: str
    words: str


class Claim(NamedTuple):
    """A statement of the paper, where it makes it, and a :class:`Finding` for each init (or checkpoint)."""

    where: str
    statement: str
    findings: list


def claims(groups):
    """The claims of the paper that these measurements speak to. ``groups``: of :func:`gradient_tables.grouped`."""
    found = [
        Claim(
            "Figure 3 (a, b)",
            "Post-LN before training: the expected gradients of W1 and W2 grow from layer to layer towards the output.",
            over_layers(groups, "post", 1 + FLAT, math.inf),
        ),
        Claim(
            "Figure 3 (a, b)",
            "Pre-LN before training: they are flat over the layers.",
            over_layers(groups, "pre", 1 - FLAT, 1 + FLAT),
        ),
        Claim("Figure 3 (a, b)", "Post-LN after the warm-up stage: they are very small everywhere.", after_warmup(groups)),
        Claim("Figure 3 (c)", "Pre-LN: the gradient of the last W2 falls as the model gets deeper.", pre_depth(groups)),
        Claim(
            "Figure 3 (d)",
            f"Post-LN: the gradient of the last W2 stays at about {paper.POST_LN:g} at every depth.",
            post_depth(groups),
        ),
        Claim(
            "Section 3.3",
            f"Before training, the squared norms of the hidden states are {paper.BOUNDED}.",
            bounded_states(groups),
        ),
    ]
    return [claim for claim in found if claim.findings]


def over_layers(groups, position, low, high):
    """A factor from layer to layer between ``low`` and ``high``, for both matrices in both stacks of the shallowest models."""
    findings = []
    for group, records in tables.shallowest(tables.initial(groups)).items():
        if group.ln_position != position or group.layers == 1:
            continue
        verdicts, words = [], []
        for matrix, name in PAPER_MATRICES.items():
            for stack in STACKS:
                factor = tables.layer_factor(records, stack, matrix)
                verdicts.append(verdict(factor, low, high))
                words.append(f"{stack} {name} {bracket(factor)}, {verdicts[-1]}")
        findings.append(Finding(f"`{group.weight_init}`, {group.title}", together(verdicts), "; ".join(words)))
    return findings


def after_warmup(groups):
    """Post-LN's checkpoints after their warm-up, layer by layer against the same model before training."""
    findings = []
    for group, records in tables.trained(groups).items():
        before = groups.get(group._replace(checkpoint=None, updates=None))
        warmup = tables.training(records).get("warmup_updates") or 0
        if group.ln_position != "post" or before is None or not 1 < warmup <= group.updates:
            continue
        verdicts, words = [], []
        for matrix, name in PAPER_MATRICES.items():
            for stack in STACKS:
                pairs = zip(*(tables.layer_norms(of, stack, matrix) for of in (before, records)), strict=True)
                shares = {
                    layer: intervals.Estimate(*(end / start.value for end in now)) for layer, (start, now) in enumerate(pairs, 1)
                }
                verdicts += [verdict(share, -math.inf, SMALL) for share in shares.values()]
                worst = intervals.worst(shares, -math.inf, SMALL)
                words.append(f"{stack} {name} at most {bracket(shares[worst])} (layer {worst})")
        words = f"as a share of the mean before training, {'; '.join(words)}"
        findings.append(Finding(f"`{group.weight_init}`, {group.title}", together(verdicts), words))
    return findings


def pre_depth(groups):
    """Pre-LN's exponent in the depth."""
    findings = []
    for (weight_init, position, quantity), (exponent, _) in tables.depth_exponents(groups).items():
        if (position, quantity) == ("pre", "expected_gradient"):
            words = f"exponent {bracket(exponent)} in the number of layers"
            if not math.isnan(exponent.low):
                inside = exponent.low <= paper.PRE_EXPONENT <= exponent.high
                words += f"; theorem 1's {paper.PRE_EXPONENT:g} is {'inside' if inside else 'outside'} its interval"
            findings.append(Finding(f"`{weight_init}`", verdict(exponent, -math.inf, -STAYS), words))
    return findings


def post_depth(groups):
    """Post-LN's exponent in the depth, and its norm at each."""
    norms = defaultdict(dict)
    for group, records in tables.initial(groups).items():
        if group.ln_position == "post":
            norms[group.weight_init][group.layers] = intervals.mean(tables.last_w2(records, "expected_gradient"))
    exponents = tables.depth_exponents(groups)
    findings = []
    for weight_init, by_depth in norms.items():
        low, high = paper.POST_LN * (1 - ABOUT), paper.POST_LN * (1 + ABOUT)
        verdicts = [verdict(norm, low, high) for norm in by_depth.values()]
        values = sorted(norm.value for norm in by_depth.values())
        far = max(values, key=lambda value: abs(math.log(value / paper.POST_LN)))
        words = f"{values[0]:.2f} to {values[-1]:.2f} over the depths, {together(verdicts)}; the farthest is "
        words += f"{100 * (far / paper.POST_LN - 1):+.0f} % away from {paper.POST_LN:g}"
        if (weight_init, "post", "expected_gradient") in exponents:
            exponent = exponents[weight_init, "post", "expected_gradient"].estimate
            verdicts.append(verdict(exponent, -STAYS, STAYS))
            words = f"exponent {bracket(exponent)} in the number of layers, {verdicts[-1]}; {words}"
        findings.append(Finding(f"`{weight_init}`", together(verdicts), words))
    return findings


def bounded(records):
    """The worst layer of a group, as ``(stack, layer)``, its share of tokens above (1 + paper.EPSILON) EZ, and the verdict."""
    shares = tables.by_layer(records, "hidden", "delta", intervals.share)
    worst = intervals.worst(shares, -math.inf, paper.DELTA)
    return worst, shares[worst], verdict(shares[worst], -math.inf, paper.DELTA)


def bounded_states(groups):
    """Hidden states of each init and position, over all depths."""
    found = defaultdict(list)
    for group, records in tables.initial(groups).items():
        found[group.weight_init, position_title(group.ln_position)].append((group, *bounded(records)))
    findings = []
    for (weight_init, title), rows in found.items():
        words = [f"{group.layers}-{group.layers} {bracket(share)}, {of_one}" for group, _, share, of_one in rows]
        words = f"share of tokens above {1 + paper.EPSILON:g} EZ in the worst layer: {'; '.join(words)}"
        findings.append(Finding(f"`{weight_init}`, {title}", together([row[-1] for row in rows]), words))
    return findings


def bracket(estimate):
    """``1.372 [1.350, 1.400]``; without an interval where there is none."""
    value, low, high = estimate
    return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")
