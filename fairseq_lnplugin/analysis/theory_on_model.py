"""The checks of :mod:`~fairseq_lnplugin.analysis.theory` on the training model's own layers, at initialization, on real data.

Without dropout, which the theory has none of; weights, embeddings, attention and LN are those that fairseq-train starts with.
Where the model's facts differ from the theory's by construction, what is checked is the value that follows from it.
"""

import argparse
import contextlib
import inspect
import itertools
import math

import numpy as np
import torch
from fairseq import utils

from fairseq_lnplugin import fused
from fairseq_lnplugin.analysis import expected_gradient, intervals
from fairseq_lnplugin.analysis.theory import Check, appendix_factor, around, rho

LAYERS, SEEDS = 6, 3
DEPTHS = (2, 4, 8)
BATCHES, MAX_TOKENS = 2, 1024
#: Rows of hidden states at which an LN's Jacobian is taken.
ROWS = 2
STACKS = ("encoder", "decoder")


class Models:
    """The training model of one named size and init, both positions, on one data folder.

    Raises:
        SystemExit: the data or the architecture cannot be used.

    """

    def __init__(self, args):
        parser = argparse.ArgumentParser()
        expected_gradient.add_arguments(parser)
        flags = ["--arch", args.arch, "--weight-init", args.weight_init, "--dropout", "0"]
        sizes = ["--batches", str(BATCHES), "--max-tokens", str(MAX_TOKENS)]
        self.args = parser.parse_args([args.data, "--out", args.out, *flags, *sizes])
        self.seeds = [args.seed + number for number in range(SEEDS)]
        self.setting = f"{args.arch}, {LAYERS}-{LAYERS}, {args.weight_init}, {SEEDS} seeds"
        with self.errors():
            expected_gradient.check(self.args)
            self.data = expected_gradient.Data(self.args)
            self.data.batches(self.args, self.seeds[0], self.build("post", 1, self.seeds[0])[0])

    @contextlib.contextmanager
    def errors(self):
        """Turns the user's errors into the command's last word."""
        try:
            yield
        except expected_gradient.UserError as error:
            raise SystemExit(f"fairseq-ln theory: {error}") from None

    def build(self, position, layers, seed):
        """A new model and its criterion."""
        source = expected_gradient.InitialModel(self.args, self.args.weight_init[0], position, layers)
        utils.set_torch_seed(seed)
        np.random.seed(seed)
        return source.build(self.data.task)

    def checks(self):
        """Lists of checks, as they get ready."""
        with self.errors():
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
        batches = list(self.data.batches(self.args, seed, model))
        model.train()
        found = {"cfg": model.cfg, "inputs": inputs(model, batches[0])}
        with torch.no_grad(), expected_gradient.recorded_sums() as sums, recorded_uniformity() as uniformity:
            criterion(model, batches[0])
        found["uniformity"] = by_sublayer(uniformity)
        found["jacobians"] = jacobians(model, position, sums, batches[0])
        return found | expected_gradient.measure(model, criterion, iter(batches), seed)

    def facts(self, seen):
        """Where the model differs from the theory by construction: its inputs, its attention."""
        checks = []
        for stack in STACKS:
            values = [found["inputs"][stack] for founds in seen.values() for found in founds]
            claim = f"{stack}: E||x_0||^2 / d = 1.5 (word d, sinusoids d/2); the theory starts at 1"
            checks.append(Check("inputs", claim, self.setting, intervals.mean(values), around(1.5, 0.05)))
        for name in ("encoder self", "decoder self", "decoder cross"):
            for position, founds in seen.items():
                rows = [found["uniformity"][name] for found in founds]
                values = [share for row in rows for share in row]
                first, last = (sum(row[layer] for row in rows) / len(rows) for layer in (0, -1))
                ends = f"first layer {first:.3f}, last {last:.3f}"
                claim = f"{title(position)}, {name}-attention is uniform as the theory's: 1 / (positions x sum p^2) = 1"
                checks.append(
                    Check("attention", claim, self.setting, intervals.mean(values), around(1.0, 0.05), ends, strict=False)
                )
        return checks

    def lemma_2(self, seen, cfg):
        """Post-LN: 1 + rho before each layer's last LN. Pre-LN: growth between its bounds, from 1.5 on."""
        value = rho_of(cfg)
        checks = []
        for stack in STACKS:
            means = [row["mean"] for found in seen["post"] for row in found["hidden"] if row["stack"] == stack]
            claim = f"Post-LN {stack}: E||x^post,5||^2 / d = 1 + rho = {1 + value:.3f}, all layers"
            checks.append(Check("lemma 2", claim, self.setting, intervals.mean(means), around(1 + value, tolerance(cfg))))
        # values with gain 1/sqrt(2), so that attention adds d/2 at most, where the theory's adds d
        attention = 1.0 if cfg.weight_init == "xavier_normal" else 0.5
        for stack, sublayers in zip(STACKS, (1, 2), strict=True):
            for layer in (1, LAYERS):
                means = [
                    row["mean"]
                    for found in seen["pre"]
                    for row in found["hidden"]
                    if (row["stack"], row["layer"]) == (stack, layer)
                ]
                low, high = 1.5 + value * layer, 1.5 + (value + attention * sublayers) * layer
                claim = (
                    f"Pre-LN {stack}, l = {layer}: 1.5 + rho l <= E||x_l||^2 / d <= 1.5 + (rho + {attention * sublayers:g}) l, "
                    f"rho = {value:.3f}"
                )
                checks.append(
                    Check(
                        "lemma 2",
                        claim,
                        self.setting,
                        mean_only(means),
                        ((1 - tolerance(cfg)) * low, (1 + tolerance(cfg)) * high),
                        "mean over seeds",
                    )
                )
        return checks

    def lemma_3(self, seen):
        """The Jacobian of the model's LNs at its own hidden states."""
        checks = []
        for position, founds in seen.items():
            exact, near = zip(*(pair for found in founds[:1] for pair in found["jacobians"]), strict=True)
            checks.append(Check("lemma 3", f"{title(position)}: ||J_LN(x)||_2 ||x - mean(x)|| / sqrt(d) = 1", self.setting,
                                intervals.mean(exact), around(1.0, 1e-3), "LN's epsilon and float32 are in it"))  # fmt: skip
            checks.append(Check("lemma 3", f"{title(position)}: ||J_LN(x)||_2 ||x|| / sqrt(d) is near 1", self.setting,
                                intervals.mean(near), (0.999, 1.1)))  # fmt: skip
        return checks

    def theorem_1(self):
        """The last W2's gradient against the number of layers, a first look; figure 3 is ``fairseq-ln gradients``."""
        checks = []
        for position in ("post", "pre"):
            points = []
            for layers in DEPTHS:
                for seed in self.seeds:
                    model, criterion = self.build(position, layers, seed)
                    result = expected_gradient.measure(model, criterion, self.data.batches(self.args, seed, model), seed)
                    points.append((layers, result["matrices"][-1]["batch_gradient"]))
            expected = "the theory: 0" if position == "post" else "the theory: -0.5 for large L"
            setting = f"{self.args.arch}, {self.args.weight_init[0]}, layers {', '.join(map(str, DEPTHS))}, {SEEDS} seeds"
            claim = f"{title(position)}: exponent in L of the last W2's gradient norm; {expected}"
            checks.append(
                Check(
                    "theorem 1",
                    claim,
                    setting,
                    intervals.exponent(*zip(*points, strict=True)),
                    None,
                    "figure 3: fairseq-ln gradients",
                )
            )
        return checks

    def appendix_f(self, seen, cfg):
        """How W2's gradient changes from a layer to the one before it."""
        checks = []
        for (position, founds), stack in itertools.product(seen.items(), STACKS):
            points = [
                (row["layer"], -math.log(row["batch_gradient"]))
                for found in founds
                for row in found["matrices"]
                if (row["stack"], row["matrix"]) == (stack, "fc2.weight")
            ]
            slope = intervals.slope(*zip(*points, strict=True))
            expected = appendix_factor(position, rho_of(cfg))
            claim = (
                f"{title(position)} {stack}: factor of W2's gradient norm for each layer away from the output is {expected:.3f}"
            )
            measured = intervals.Estimate(*map(math.exp, slope))
            checks.append(Check("appendix F", claim, self.setting, measured, around(expected, 0.03), strict=False))
        return checks

    def boundedness(self, seen):
        """(0.1, 0.125)-bounded hidden states, as the paper found them; the spread falls with d."""
        checks = []
        for (position, founds), stack in itertools.product(seen.items(), STACKS):
            rows = [row for found in founds for row in found["hidden"] if row["stack"] == stack]
            worst = max(row["delta"] for row in rows)
            epsilon = max(row["epsilon"] for row in rows)
            note = f"worst layer {worst:.3f}; smallest epsilon at delta = 0.125: {epsilon:.3f} at the worst"
            claim = f"{title(position)} {stack}: P[Z > 1.1 EZ] <= 0.125, Z = ||x||^2 after the FFN, all layers"
            measured = intervals.mean([row["delta"] for row in rows])
            checks.append(Check("(0.1, 0.125)-bounded", claim, self.setting, measured, (-math.inf, 0.125), note, strict=False))
        return checks


def title(position):
    """``Post-LN`` for ``post``."""
    return f"{position.capitalize()}-LN"


def mean_only(values):
    """A mean whose interval is itself: what is claimed is claimed of it."""
    value = sum(values) / len(values)
    return intervals.Estimate(value, value, value)


def tolerance(cfg):
    """What a mean over a few seeds leaves of the weights' own spread: 5 % at the paper's width, below it more, as 1 / sqrt(d)."""
    return 0.05 * math.sqrt(512 / min(cfg.encoder.embed_dim, 512))


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
def recorded_uniformity():
    """Inside, how uniform each attention was is kept, in order: mean over queries and heads of 1 / (positions x sum p^2)."""
    original, kept = fused.attention, []
    signature = inspect.signature(original)

    def attention(*args, **kwargs):
        call = signature.bind(*args, **kwargs)
        asked, call.arguments["need_weights"] = call.arguments.get("need_weights", False), True
        out, probs = original(*call.args, **call.kwargs)
        attended = (probs > 0).sum(-1)
        kept.append((1 / (attended * probs.pow(2).sum(-1)))[attended > 1].mean().item())
        return out, probs if asked else None

    fused.attention = attention
    try:
        yield kept
    finally:
        fused.attention = original


def by_sublayer(kept):
    """The values of :func:`recorded_uniformity` by kind of attention, layer by layer."""
    decoder = kept[LAYERS:]
    return {"encoder self": kept[:LAYERS], "decoder self": decoder[0::2], "decoder cross": decoder[1::2]}


def jacobians(model, position, sums, sample):
    """For some hidden states of each layer: the spectral norm of its FFN's LN there.

    Each times ``||x - mean|| / sqrt(d)``, which makes it 1, and times ``||x|| / sqrt(d)``.
    """
    pairs, at = [], 0
    for stack, sublayers in zip(STACKS, (2, 3), strict=True):
        for layer in getattr(model, stack).layers:
            at += sublayers
            # what the FFN's LN reads: the sum after the FFN (Post-LN), the stream before it (Pre-LN)
            x = sums[at - 1 if position == "post" else at - 2]
            for row in x[
                0, :ROWS
            ]:  # first tokens: never pads in the decoder; pads of the encoder, on the left, are states as well
                if row.norm() == 0:
                    continue
                jacobian = torch.autograd.functional.jacobian(layer.final_layer_norm.normalize, row[None, None])
                spectral = torch.linalg.matrix_norm(jacobian.view(len(row), len(row)).double(), 2).item()
                root = math.sqrt(len(row))
                pairs.append((spectral * (row - row.mean()).norm().item() / root, spectral * row.norm().item() / root))
    return pairs
