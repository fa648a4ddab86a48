"""The checks of :mod:`~fairseq_lnplugin.analysis.theory` on the training model's own layers, at initialization, on real data.

Without dropout, which the theory has none of; weights, embeddings, attention and LN are those that fairseq-train starts with.
Where the model's facts differ from the theory's by construction, what is checked is the value that follows from it.
"""

import contextlib
import functools
import inspect
import itertools
import math

import numpy as np
import torch
from fairseq import utils

from fairseq_lnplugin import fused
from fairseq_lnplugin.analysis import expected_gradient, paper
from fairseq_lnplugin.analysis.gradient_tables import by_layer
from fairseq_lnplugin.analysis.theory import Check, appendix_factor, around, of_worst, rho
from fairseq_lnplugin.study import intervals
from fairseq_lnplugin.study.wording import position_title as title
from fairseq_lnplugin.transformer_ln_study import STACKS
from fairseq_lnplugin.user_error import UserError

LAYERS = 6
DEPTHS, DEPTH_SEEDS = (2, 4, 8), 3
BATCHES, MAX_TOKENS = 2, 1024
#: Rows of hidden states at which an LN's Jacobian is taken.
ROWS = 2
#: Of a sentence, positions that are never pads: those of the encoder are on the left, the decoder's on the right.
REAL = {"encoder": slice(-ROWS, None), "decoder": slice(ROWS)}


class Models:
    """The training model of one named size and init, both positions, on one data folder.

    ``folder``: made by fairseq-preprocess; ``seed``: the first of as many as the paper has; ``name``: what the report calls the
    data, default: as its corpus.json or folder.

    Raises:
        UserError: the data or the architecture cannot be used.

    """

    def __init__(self, folder, arch, weight_init, seed, name=None):
        self.weight_init, self.settings = weight_init, paper.SETTINGS | {"arch": arch, "dropout": 0.0}
        # as many as the paper has; they are the independent values of each layer
        self.seeds = [seed + number for number in range(paper.SEEDS)]
        self.setting = f"{arch}, {LAYERS}-{LAYERS}, {weight_init}, {paper.SEEDS} seeds"
        expected_gradient.check_arch(arch)
        self.data = expected_gradient.Data(folder, "train", name=name)
        model, _ = self.build("post", 1, seed)
        try:
            self.batches(seed, model)
        except UserError:
            raise UserError(
                f"{folder} has not {BATCHES} mini-batches of {MAX_TOKENS:,} tokens; give a folder with more pairs, or leave it "
                "out"
            ) from None
        self.described = {"arch": arch, "weight_init": weight_init, "data": self.data.facts}
        self.described |= {"batches": BATCHES, "max_tokens": MAX_TOKENS, "heads": model.cfg.decoder.attention_heads}

    def build(self, position, layers, seed):
        """A new model and its criterion."""
        source = expected_gradient.InitialModel(self.weight_init, position, layers, **self.settings)
        utils.set_torch_seed(seed)
        np.random.seed(seed)
        return source.build(self.data.task)

    def batches(self, seed, model):
        """An iterator over the mini-batches of a seed."""
        return self.data.batches(BATCHES, MAX_TOKENS, seed, model)

    def checks(self):
        """Lists of checks, as they get ready; errors as of :func:`expected_gradient.measure`."""
        seen = {position: [self.observe(position, seed) for seed in self.seeds] for position in ("post", "pre")}
        cfg = seen["post"][0]["cfg"]
        yield self.facts(seen)
        yield self.lemma_2(seen, cfg)
        yield self.lemma_3(seen)
        yield self.theorem_1()
        yield self.appendix_f(seen, cfg)
        yield self.boundedness(seen)

    def observe(self, position, seed):
        """All that the checks need of one model of :data:`LAYERS` layers."""
        model, criterion = self.build(position, LAYERS, seed)
        batches = list(self.batches(seed, model))
        model.train()
        found = {"cfg": model.cfg, "inputs": inputs(model, batches[0])}
        with torch.no_grad(), expected_gradient.recorded_sums() as sums, recorded_uniformity(model, batches[0]) as uniformity:
            criterion(model, batches[0])
        found["uniformity"] = by_sublayer(uniformity)
        found["jacobians"] = jacobians(model, position, sums)
        return found | expected_gradient.measure(model, criterion, iter(batches), seed)

    def facts(self, seen):
        """Where the model differs from the theory by construction: its inputs, its attention."""
        checks = []
        for stack in STACKS:
            values = [found["inputs"][stack] for found in seen["post"]]  # Pre-LN of the same seed begins with the same numbers
            claim = f"{stack}: E||x_0||^2 / d = 1.5 (word d, sinusoids d/2); the theory starts at 1"
            checks.append(Check("inputs", claim, self.setting, intervals.mean(values), around(1.5, 0.05)))
        for name, (position, founds) in itertools.product(("encoder self", "decoder self", "decoder cross"), seen.items()):
            shares = of_stack(founds, "uniformity", "share", name, intervals.share)
            first, *_, last = (share.value for share in shares.values())
            ends = f"first layer {first:.3f}, last {last:.3f}"
            claim = f"{title(position)}, {name}-attention is uniform as the theory's: 1 / (positions x sum p^2) = 1, all layers"
            checks.append(of_worst("attention", claim, self.setting, shares, around(1.0, 0.05), ends, strict=False))
        return checks

    def lemma_2(self, seen, cfg):
        """Post-LN: 1 + rho before each layer's last LN. Pre-LN: growth between its bounds, from 1.5 on."""
        value = rho_of(cfg)
        checks = []
        for stack in STACKS:
            claim = f"Post-LN {stack}: E||x^post,5||^2 / d = 1 + rho = {1 + value:.3f}, all layers"
            means = of_stack(seen["post"], "hidden", "mean", stack)
            checks.append(of_worst("lemma 2", claim, self.setting, means, around(1 + value, tolerance(cfg))))
        # values with gain 1/sqrt(2), so that attention adds d/2 at most, where the theory's adds d
        attention = 1.0 if cfg.weight_init == "xavier_normal" else 0.5
        for stack, sublayers in zip(STACKS, (1, 2), strict=True):
            means = of_stack(seen["pre"], "hidden", "mean", stack)
            for layer in (1, LAYERS):
                low, high = 1.5 + value * layer, 1.5 + (value + attention * sublayers) * layer
                claim = (
                    f"Pre-LN {stack}, l = {layer}: 1.5 + rho l <= E||x_l||^2 / d <= 1.5 + (rho + {attention * sublayers:g}) l, "
                    f"rho = {value:.3f}"
                )
                allowed = ((1 - tolerance(cfg)) * low, (1 + tolerance(cfg)) * high)
                checks.append(Check("lemma 2", claim, self.setting, means[f"layer {layer}"], allowed))
        return checks

    def lemma_3(self, seen):
        """The Jacobian of the model's LNs at its own hidden states."""
        checks = []
        for (position, founds), stack in itertools.product(seen.items(), STACKS):
            where = f"{title(position)} {stack}"
            exact, near = (of_stack(founds, "jacobians", name, stack) for name in ("exact", "near"))
            claim = f"{where}: ||J_LN(x)||_2 ||x - mean(x)|| / sqrt(d) = 1, all layers"
            note = "LN's epsilon and float32 are in it"
            checks.append(of_worst("lemma 3", claim, self.setting, exact, around(1.0, 1e-3), note))
            claim = f"{where}: ||J_LN(x)||_2 ||x|| / sqrt(d) is near 1, all layers"
            note = "||x|| / ||x - mean(x)||, which nothing bounds: the sinusoids' mean is not 0"
            checks.append(of_worst("lemma 3", claim, self.setting, near, (0.999, 1.1), note, strict=False))
        return checks

    def theorem_1(self):
        """The last W2's gradient against the number of layers, a first look; figure 3 is ``fairseq-ln gradients``."""
        checks = []
        setting = f"{self.settings['arch']}, {self.weight_init}, layers {', '.join(map(str, DEPTHS))}, {DEPTH_SEEDS} seeds"
        for position, expected in (("post", "0"), ("pre", f"{paper.PRE_EXPONENT:g} for large L")):
            lines = [(DEPTHS, [self.last_gradient(position, layers, seed) for layers in DEPTHS])
                     for seed in self.seeds[:DEPTH_SEEDS]]  # fmt: skip
            claim = f"{title(position)}: exponent in L of the last W2's gradient norm; the theory: {expected}"
            measured = intervals.mean_exponent(lines)
            checks.append(Check("theorem 1", claim, setting, measured, None, "figure 3: fairseq-ln gradients"))
        return checks

    def last_gradient(self, position, layers, seed):
        """Batch gradient of W2 in the decoder's last layer."""
        model, criterion = self.build(position, layers, seed)
        result = expected_gradient.measure(model, criterion, self.batches(seed, model), seed)
        return result["matrices"][-1]["batch_gradient"]

    def appendix_f(self, seen, cfg):
        """How W2's gradient changes from a layer to the one before it."""
        checks = []
        away = range(LAYERS - 1, -1, -1)
        for (position, founds), stack in itertools.product(seen.items(), STACKS):
            lines = [(away, [row["batch_gradient"] for row in found["matrices"]
                             if (row["stack"], row["matrix"]) == (stack, "fc2.weight")]) for found in founds]  # fmt: skip
            expected = appendix_factor(position, rho_of(cfg))
            claim = (
                f"{title(position)} {stack}: factor of W2's gradient norm for each layer away from the output is {expected:.3f}"
            )
            measured = intervals.mean_factor(lines)
            checks.append(Check("appendix F", claim, self.setting, measured, around(expected, 0.03), strict=False))
        return checks

    def boundedness(self, seen):
        """(epsilon, delta)-bounded hidden states, as the paper found them; the spread falls with d."""
        checks = []
        for (position, founds), stack in itertools.product(seen.items(), STACKS):
            epsilon = max(found.value for found in of_stack(founds, "hidden", "epsilon", stack).values())
            few = f"P[Z > {1 + paper.EPSILON:g} EZ] <= {paper.DELTA:g}"
            claim = f"{title(position)} {stack}: {few}, Z = ||x||^2 after the FFN, all layers"
            note = f"smallest epsilon at delta = {paper.DELTA:g}: {epsilon:.3f} in the layer where it is largest"
            shares = of_stack(founds, "hidden", "delta", stack, intervals.share)
            allowed = (-math.inf, paper.DELTA)
            checks.append(of_worst(paper.BOUNDED, claim, self.setting, shares, allowed, note, strict=False))
        return checks


def of_stack(founds, kind, name, stack, estimate=intervals.mean):
    """What models of different seeds say of each layer of a stack: ``{"layer 1": Estimate}``, of one value a seed.

    ``founds``: of :meth:`Models.observe`; ``kind``: its list of rows with ``stack``, ``layer`` and ``name``.
    """
    estimates = by_layer(founds, kind, name, estimate)
    return {f"layer {layer}": found for (where, layer), found in estimates.items() if where == stack}


def tolerance(cfg):
    """How far the interval of one layer's mean may reach from its expectation: 12 % at the paper's width, below it more.

    A layer's mean varies by up to 8 % from seed to seed at d = 512, and as 1 / sqrt(d): over ten seeds that leaves the mean 2.5 %
    and its interval 6 % to each side, of which the worst of twelve layers takes twice as much.
    """
    return 0.12 * math.sqrt(512 / min(cfg.encoder.embed_dim, 512))


def rho_of(cfg):
    """E||FFN(x)||^2 / ||x||^2 of a model's FFN at its initialization."""
    if cfg.weight_init == "fairseq":
        return 1 / 18  # variances 1 / (3 fan_in), whatever the inner width
    return rho(cfg.encoder.ffn_embed_dim / cfg.encoder.embed_dim)


def inputs(model, sample):
    """Mean of ``||x_0||^2 / d`` over real tokens, by stack."""
    source, previous = sample["net_input"]["src_tokens"], sample["net_input"]["prev_output_tokens"]
    encoder, decoder = model.encoder, model.decoder
    with torch.no_grad():
        states = {
            "encoder": (encoder.forward_embedding(source)[0], source),
            "decoder": (decoder.embed_scale * decoder.embed_tokens(previous) + decoder.embed_positions(previous), previous),
        }
    return {stack: x[tokens.ne(encoder.padding_idx)].pow(2).mean().item() for stack, (x, tokens) in states.items()}


@contextlib.contextmanager
def recorded_uniformity(model, sample):
    """Inside, how uniform each attention was is kept, in order: mean over queries and heads of 1 / (positions x sum p^2).

    Of real queries in a pass over fairseq's ``sample``: a pad's scores come from the biases alone, and are more uniform.
    """
    original, kept = fused.attention, []
    signature = inspect.signature(original)
    source, target = (sample["net_input"][name].ne(model.encoder.padding_idx) for name in ("src_tokens", "prev_output_tokens"))

    def attention(*args, **kwargs):
        call = signature.bind(*args, **kwargs)
        asked, call.arguments["need_weights"] = call.arguments.get("need_weights", False), True
        out, probs = original(*call.args, **call.kwargs)
        attended = (probs > 0).sum(-1)
        queries = source if len(kept) < len(model.encoder.layers) else target
        kept.append((1 / (attended * probs.pow(2).sum(-1)))[(attended > 1) & queries].mean().item())
        return out, probs if asked else None

    fused.attention = attention
    try:
        yield kept
    finally:
        fused.attention = original


def by_sublayer(kept):
    """The values of :func:`recorded_uniformity` as rows of ``stack`` (with the kind of attention), ``layer`` and ``share``."""
    decoder = kept[LAYERS:]
    kinds = {"encoder self": kept[:LAYERS], "decoder self": decoder[0::2], "decoder cross": decoder[1::2]}
    return [
        {"stack": kind, "layer": layer, "share": share} for kind, shares in kinds.items() for layer, share in enumerate(shares, 1)
    ]


def jacobians(model, position, sums):
    """The spectral norm of the Jacobian of each layer's FFN's LN: rows of ``stack``, ``layer``, ``exact`` and ``near``.

    Means over :data:`ROWS` hidden states x: of ``||J||_2 ||x - mean(x)|| / sqrt(d)``, which is 1, of ``||J||_2 ||x|| / sqrt(d)``.
    """
    rows, at = [], 0
    for stack, sublayers in zip(STACKS, (2, 3), strict=True):
        for number, layer in enumerate(getattr(model, stack).layers, 1):
            at += sublayers
            # what the FFN's LN reads: the sum after the FFN (Post-LN), the stream before it (Pre-LN)
            states = sums[at - 1 if position == "post" else at - 2]
            exact, near = [], []
            for x in states[REAL[stack], 0]:
                norm = functools.partial(layer.final_layer_norm.normalize, dtype=x.dtype)
                jacobian = torch.autograd.functional.jacobian(norm, x[None, None])
                spectral = torch.linalg.matrix_norm(jacobian.view(len(x), len(x)).double(), 2).item() / math.sqrt(len(x))
                exact.append(spectral * (x - x.mean()).norm().item())
                near.append(spectral * x.norm().item())
            rows.append({"stack": stack, "layer": number, "exact": sum(exact) / ROWS, "near": sum(near) / ROWS})
    return rows
