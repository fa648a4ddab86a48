"""Tests of fairseq_lnplugin/fused.py and csrc/kernels.cpp: the C++ kernels against torch's operators, and dropout's statistics.

The oracle of a kernel is the torch path of the same function, which runs when ``fused.kernels`` is None.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq import checkpoint_utils

import fairseq_lnplugin
from fairseq_lnplugin import fused, fused_label_smoothed_cross_entropy

needs_kernels = pytest.mark.skipif(fused.kernels is None, reason="the kernels were not built: no C++ compiler at set-up")

DTYPES = [torch.float32, torch.bfloat16]
#: Relative to the largest entry: rounding of sums in float, and of one result in bfloat16 (8 bits).
BOUND = {torch.float32: 2e-6, torch.bfloat16: 2**-7}

#: (tgt_len, src_len): only a square takes a causal mask.
SQUARE, OBLONG = [(5, 5), (16, 16), (25, 25)], [(3, 40), (1, 17)]


def random(*shape, dtype=torch.float32, seed=0):
    """Standard normal numbers that ask for their gradient."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


def outcomes(function, inputs):
    """The output and the gradients at ``inputs`` of a fixed weighted sum of it."""
    out = function(*inputs)
    generator = torch.Generator().manual_seed(9)
    weights = torch.randn(out.shape, generator=generator).to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


def assert_kernel_agrees(function, inputs, monkeypatch, bound):
    """Output and gradients with the kernels equal those of torch's operators."""
    ours = outcomes(function, inputs)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "kernels", None)
        expected = outcomes(function, inputs)
    for got, wanted in zip(ours, expected, strict=True):
        assert got.dtype == wanted.dtype
        error = (got.double() - wanted.double()).abs().max() / wanted.double().abs().max()
        assert error <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("path", ["kernel", "torch"])
def test_a_query_that_may_attend_to_nothing_gets_zeros_and_passes_no_gradient(path, p, dtype, monkeypatch):
    """As torch's attention: with --left-pad-target the first words are pads, and before them there is nothing."""
    if path == "torch":
        monkeypatch.setattr(fused, "kernels", None)
    q, k, v = (random(3, 2, 2, 8, dtype=dtype, seed=seed) for seed in range(3))
    torch.manual_seed(1)  # dropout must not take the only word that the third one sees
    pads = torch.tensor([[True, True, False], [False, False, False]])
    causal = torch.triu(torch.full((3, 3), -math.inf), 1)
    out, _ = fused.attention(q, k, v, pads, causal, p)
    gradients = torch.autograd.grad(out.float().sum(), (q, k, v))
    assert not out[:2, 0].any() and out[2, 0].any() and out[:, 1].any()
    assert all(gradient.isfinite().all() for gradient in gradients) and not gradients[0][:2, 0].any()


@needs_kernels
def test_what_does_not_fit_together_is_refused_and_not_read_out_of_bounds():
    """Shapes, rows, heads, gaps and types; each would be memory of something else, and each has its own sentence."""
    x, q = torch.randn(4, 64), torch.randn(5, 2, 2, 8)
    logits, kernels = torch.randn(3, 50), fused.kernels
    narrow, few_heads, gaps = torch.randn(1, 64), torch.randn(5, 2, 1, 8), torch.randn(5, 2, 8, 2).transpose(2, 3)
    origin, ones = torch.zeros(2, 5, dtype=torch.long), torch.ones(64)
    targets = torch.tensor([[0, 9], [1, 9], [2, 9]])
    for sentence, *calls in (
        (
            "two tensors of one shape, without gaps, expected",
            lambda: kernels.dropout_add(x, narrow, 0.1, 1),
            lambda: kernels.dropout_add(x, x.t().contiguous().t(), 0.1, 1),
        ),
        ("a tensor without gaps expected", lambda: kernels.dropout_backward(x.t(), torch.float32, 0.1, 1)),
        (
            "rows without gaps, as wide as weight and bias, expected",
            lambda: kernels.layer_norm(x, ones[1:], ones, 1e-5, torch.float32),
        ),
        ("float or bfloat16 expected", lambda: kernels.layer_norm(x, ones, ones, 1e-5, torch.float16)),
        (
            "a gradient of the shape of x, without gaps, expected",
            lambda: kernels.layer_norm_backward(narrow, x, torch.zeros(4, 2), ones),
        ),
        (
            "keys and values of one shape, with the rows, heads and head_dim of the queries, expected",
            lambda: kernels.attention(q, few_heads, few_heads, None, None),
            lambda: kernels.attention(q, q, q[:4], None, None),
        ),
        ("one type of q, k and v expected", lambda: kernels.attention(q, q.bfloat16(), q, None, None)),
        (
            "operands are (len, batch, heads, head_dim), head_dim without gaps",
            lambda: kernels.attention(q, gaps, gaps, None, None),
        ),
        (
            "a mask of pads (batch, src_len), without gaps, expected",
            lambda: kernels.attention(q, q, q, torch.zeros(2, 4, dtype=torch.bool), None),
        ),
        (
            "an attention mask (tgt_len, src_len), without gaps, expected",
            lambda: kernels.attention(q, q, q, None, torch.zeros(4, 4)),
        ),
        (
            "keys and values of one shape, with the heads and head_dim of the queries, expected",
            lambda: kernels.history_attention(q[:1], q, q[:, :1], origin, False),
        ),
        ("an origin for each of its steps", lambda: kernels.history_attention(q[:1], q, q, origin[:, :4].contiguous(), False)),
        ("an origin is no row of the history", lambda: kernels.history_attention(q[:1], q, q, origin + 2, False)),
        (
            "a target is none of the 50 types",
            lambda: kernels.label_smoothed_rows(logits, torch.tensor([0, 1, 50]), 0.1, 0.1),
            lambda: kernels.label_smoothed_rows(logits, torch.tensor([0, 1, -1]), 0.1, 0.1),
        ),
        (
            "a target for each row, without gaps, expected",
            lambda: kernels.label_smoothed_rows(logits, torch.tensor([0, 1]), 0.1, 0.1),
            lambda: kernels.label_smoothed_rows(logits, targets[:, 0], 0.1, 0.1),
        ),
        (
            "rows without gaps, of more types than asked for, expected",
            lambda: kernels.best_types(logits, 4, 47),
            lambda: kernels.best_types(logits, 4, 0),
            lambda: kernels.best_types(logits, -1, 4),
            lambda: kernels.best_types(logits.t(), 1, 1),
        ),
    ):
        for call in calls:
            with pytest.raises(RuntimeError, match=re.escape(sentence)):
                call()


def test_tensors_without_elements_pass_through():
    """No row, or rows of no element."""
    for shape in ((0, 8), (3, 0)):
        empty = torch.zeros(shape, requires_grad=True)
        assert fused.dropout(empty, 0.1, torch.float32).shape == shape
        assert fused.dropout_add(empty, empty, 0.1).shape == shape
    rows = torch.zeros(0, 8, requires_grad=True)
    fused.layer_norm(rows, torch.ones(8, requires_grad=True), torch.ones(8), 1e-5, torch.float32).sum().backward()
    assert rows.grad.shape == (0, 8)


@needs_kernels
def test_a_second_derivative_is_refused_and_not_wrong():
    """The kernels have none: torch says so, where a penalty on gradients would go without its terms."""
    x, weight = random(3, 8), random(8, seed=1)
    out = x + fused.layer_norm(x, weight, torch.zeros(8), 1e-5, torch.float32)
    (gradient,) = torch.autograd.grad((out**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.pow(2).sum().backward()


def test_on_a_device_without_autocast_the_operators_work():
    """``meta``, which knows shapes only."""
    linear = torch.nn.Linear(4, 8, device="meta")
    x = torch.empty(3, 4, device="meta")
    assert fused.linear(x, torch.float32, linear).shape == (3, 8)
    assert fused.layer_norm(x, linear.weight[0], linear.weight[1], 1e-5, torch.float32).shape == (3, 4)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 15, 64, 250])
def test_layer_norm_of_the_kernel_equals_torchs(width, dtype, monkeypatch):
    """LN(x) = (x - mean) / sqrt(variance + eps) * weight + bias, with all gradients, for widths beside a vector's too."""
    inputs = [random(7, 3, width), random(width, seed=1), random(width, seed=2)]
    assert_kernel_agrees(lambda x, w, b: fused.layer_norm(x, w, b, 1e-5, dtype), inputs, monkeypatch, BOUND[dtype])


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["projection", "cache"])
@pytest.mark.parametrize(
    ("tgt_len", "src_len", "masks"),
    [(*lengths, masks) for lengths in SQUARE for masks in ("none", "pads", "causal", "both")]
    + [(*lengths, masks) for lengths in OBLONG for masks in ("none", "pads")],
)
def test_attention_of_the_kernel_equals_torchs(tgt_len, src_len, masks, layout, dtype, monkeypatch):
    """softmax(q k^T / sqrt(d) + masks) v with its gradients, for lengths beside a vector's."""
    heads, head_dim, batch = 3, 20, 4
    inputs = [random(tgt_len, batch, heads, head_dim, dtype=dtype)]
    inputs += [random(src_len, batch, heads, head_dim, dtype=dtype, seed=seed) for seed in (1, 2)]
    pads = causal = None
    if masks in ("pads", "both"):
        lengths = torch.tensor([src_len, 1, src_len // 2 + 1, src_len])
        pads = torch.arange(src_len)[None, :] >= lengths[:, None]
    if masks in ("causal", "both"):
        causal = torch.full((tgt_len, src_len), -math.inf).triu(1)
    if layout == "cache":  # as decoding keeps keys and values: (batch, heads, len, head_dim)
        inputs[1:] = [x.detach().permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3).requires_grad_() for x in inputs[1:]]
    assert_kernel_agrees(lambda q, k, v: fused.attention(q, k, v, pads, causal)[0], inputs, monkeypatch, 2 * BOUND[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [5, 32, 40])
@pytest.mark.parametrize("steps", [1, 16, 37])
@pytest.mark.parametrize("path", ["kernel", "torch"])
def test_attention_to_a_history_equals_attention_to_the_keys_it_points_to(steps, head_dim, dtype, path, monkeypatch):
    """Against softmax(q k^T / sqrt(d)) and its product with v, a row at a time, pads left out; keys in larger tensors."""
    if path == "torch":
        monkeypatch.setattr(fused, "kernels", None)
    batch, rows, heads = 6, 7, 3
    q = random(1, batch, heads, head_dim, dtype=dtype)
    keys, values = (random(steps + 2, rows + 1, heads, head_dim, dtype=dtype, seed=seed)[:steps, :rows] for seed in (1, 2))
    origin = torch.randint(rows, (batch, steps), generator=torch.Generator().manual_seed(5))
    origin[torch.rand(batch, steps, generator=torch.Generator().manual_seed(6)) < 0.3] = -1
    origin[:, -1] = torch.arange(batch)
    with torch.no_grad():
        out, weights = fused.history_attention(q, keys, values, origin, need_weights=True)
        assert fused.history_attention(q, keys, values, origin)[1] is None
    assert weights.shape == (heads, batch, 1, steps)
    assert out.shape == (1, batch, heads * head_dim) and out.dtype == dtype
    for b in range(batch):
        real = [t for t in range(steps) if origin[b, t] >= 0]
        k, v = (torch.stack([tensor[t, origin[b, t]] for t in real]).double() for tensor in (keys, values))
        probs = torch.einsum("hd,thd->ht", q[0, b].double(), k).div(head_dim**0.5).softmax(1)
        expected = torch.einsum("ht,thd->hd", probs, v).flatten()
        bound = 2e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(out[0, b].double(), expected, rtol=0, atol=bound)
        torch.testing.assert_close(weights[:, b, 0, real].double(), probs, rtol=0, atol=bound)
        assert weights[:, b].sum() == pytest.approx(heads, abs=bound * heads)  # pads have none


@pytest.mark.parametrize("built_from", [None, 1])
def test_kernels_of_another_version_of_their_source_are_not_taken(built_from, monkeypatch):
    """As an update of the checkout or of torch leaves them: the reason has the command that builds them again."""
    built = SimpleNamespace(__file__="_kernels.so", **({} if built_from is None else {"source": built_from}))
    monkeypatch.setattr(fairseq_lnplugin, "_kernels", built, raising=False)
    kernels, why = fused.built_kernels()
    assert kernels is None and "_kernels.so was built from another kernels.cpp" in why and "build_ext --inplace" in why
    source = (Path(fused.__file__).parent / "csrc" / "kernels.cpp").read_bytes()
    built.source = zlib.crc32(source + torch.__version__.encode())
    assert fused.built_kernels() == (built, "")


def test_an_installation_goes_on_without_kernels_where_they_cannot_be_compiled(repo_root, tmp_path):
    """A compiler that fails: a warning and status 0, also where ninja is there."""
    for name in ("setup.py", "README.md", "pyproject.toml"):
        shutil.copy(repo_root / name, tmp_path)
    shutil.copytree(repo_root / "fairseq_lnplugin" / "csrc", tmp_path / "fairseq_lnplugin" / "csrc")
    compiler = tmp_path / "compiler"  # one that is there and does not know the flags
    compiler.write_text('#!/bin/sh\nfor word; do [ "$word" = -c ] && exit 1; done\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env=os.environ | {"CC": str(compiler), "CXX": str(compiler)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert 'building extension "fairseq_lnplugin._kernels" failed' in result.stdout + result.stderr
    assert not list((tmp_path / "fairseq_lnplugin").glob("*.so"))


@pytest.mark.parametrize("vocab", [5, 64, 1003])
def test_label_smoothed_loss_of_the_kernel_equals_torchs(vocab, monkeypatch):
    """-(1 - eps - s) log p_y - s sum_v log p_v with s = eps / (V - 1), and its gradients."""
    target = torch.arange(30) % vocab
    inputs = [random(30, 16), random(vocab, 16)]

    def loss(features, weight):
        return fused.label_smoothed_nll(features, weight, target, 0.1, torch.float32)[0].sum()

    assert_kernel_agrees(loss, inputs, monkeypatch, 5e-6)


def test_label_smoothed_loss_is_exact_for_large_logits():
    """Logits of 1,000 overflow an exponential that is not shifted by the largest."""
    features, weight = torch.eye(4) * 1000, torch.eye(4)
    target = torch.tensor([0, 1, 2, 0])
    loss, nll = fused.label_smoothed_nll(features, weight, target, 0.1, torch.float32)
    lprobs = F.log_softmax(features.double() @ weight.double(), dim=-1)
    torch.testing.assert_close(nll.double(), -lprobs.gather(1, target[:, None])[:, 0])
    smooth = 0.1 / 3
    expected = (0.9 - smooth) * -lprobs.gather(1, target[:, None])[:, 0] - smooth * lprobs.sum(-1)
    torch.testing.assert_close(loss.double(), expected)


@needs_kernels
@pytest.mark.parametrize("value", [1.0, -2.5, 1e-30, 3.3895e38, math.inf, -math.inf, math.nan])
def test_bfloat16_is_rounded_as_torch_rounds(value):
    """Nearest, ties to even; infinities and NaN stay what they are."""
    grad = torch.full((2, 40), value)
    grad[:, ::3] = value * (1 + 2**-8)  # a tie
    ours = fused.kernels.dropout_backward(grad, torch.bfloat16, 0.0, 1)
    torch.testing.assert_close(ours, grad.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", ["kernel", "torch"])
def test_attention_with_dropout_equals_its_formula_and_has_its_rate(path, dtype, monkeypatch):
    """(softmax(q k^T / sqrt(d) + pads) * kept / (1 - p)) v, kept read off values that are unit vectors; with gradients."""
    if path == "torch":
        monkeypatch.setattr(fused, "kernels", None)
    rate, length, batch, heads = 0.3, 40, 8, 3
    q, k = (random(length, batch, heads, length, dtype=dtype, seed=seed) for seed in (0, 1))
    v = torch.eye(length, dtype=dtype)[:, None, None, :].repeat(1, batch, heads, 1).requires_grad_()
    pads = torch.arange(length) >= torch.tensor([40, 3, 21, 40, 40, 40, 40, 40])[:, None]
    out, *gradients = outcomes(lambda q, k, v: fused.attention(q, k, v, pads, p=rate)[0], [q, k, v])
    kept = out.detach().view(length, batch, heads, length).permute(1, 2, 0, 3) != 0

    def formula(q, k, v):
        scores = torch.einsum("tbhd,sbhd->bhts", q, k) / math.sqrt(length)
        probs = scores.masked_fill(pads[:, None, None], -math.inf).softmax(-1)
        return torch.einsum("bhts,sbhd->tbhd", probs * kept / (1 - rate), v).flatten(2)

    expected = outcomes(formula, [x.detach().double().requires_grad_() for x in (q, k, v)])
    for got, wanted in zip([out, *gradients], expected, strict=True):
        assert got.dtype == dtype
        assert (got.double() - wanted).abs().max() <= 4 * BOUND[dtype] * wanted.abs().max()
    real = ~pads[:, None, None].expand_as(kept)
    share = (real & ~kept).sum() / real.sum()
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / real.sum())


def dropped(rate, rows=400, width=512):
    """Which elements dropout drops, of ones, drawn from torch's generator as it stands."""
    return fused.dropout_add(torch.zeros(rows, width), torch.ones(rows, width), rate) == 0


@needs_kernels
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_dropout_drops_at_its_rate(rate):
    """The share of dropped elements lies within 4 standard errors of p."""
    torch.manual_seed(1)
    share = dropped(rate).double()
    assert abs(share.mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / share.numel())


@needs_kernels
def test_dropout_keeps_the_mean():
    """Kept elements are scaled by 1 / (1 - p), so that the mean of ones stays 1 within 4 standard errors."""
    torch.manual_seed(1)
    out = fused.dropout_add(torch.zeros(400, 512), torch.ones(400, 512), 0.1)
    assert abs(out.double().mean() - 1) < 4 * math.sqrt(0.1 / 0.9 / out.numel())


@needs_kernels
@pytest.mark.parametrize("shift", [(0, 1), (0, 16), (0, 32), (1, 0), (1, 1), (16, 0)])
def test_dropout_of_neighbours_is_independent(shift):
    """Both of two elements a fixed way apart are dropped with probability p^2, within 4 standard errors."""
    torch.manual_seed(2)
    drops = dropped(0.3)
    both = (drops & torch.roll(drops, shift, dims=(0, 1))).double()
    assert abs(both.mean() - 0.09) < 4 * math.sqrt(0.09 * 0.91 / both.numel())


@needs_kernels
def test_dropout_of_two_calls_is_independent():
    """Elements dropped by two calls in a row: p^2 of them, within 4 standard errors."""
    torch.manual_seed(3)
    both = (dropped(0.3) & dropped(0.3)).double()
    assert abs(both.mean() - 0.09) < 4 * math.sqrt(0.09 * 0.91 / both.numel())


@needs_kernels
def test_dropped_elements_of_a_row_are_binomial():
    """The number dropped in each row has the variance n p (1 - p) of independent elements, within 5 standard errors."""
    torch.manual_seed(4)
    counts = dropped(0.5, rows=4000, width=256).sum(1).double()
    variance = 256 * 0.25
    assert abs(counts.var() - variance) < 5 * variance * math.sqrt(2 / 4000)


def test_dropout_is_reproducible_from_the_seed():
    """torch.manual_seed gives the same elements again, and another seed gives others."""
    torch.manual_seed(5)
    first = dropped(0.3)
    torch.manual_seed(5)
    again = dropped(0.3)
    torch.manual_seed(6)
    other = dropped(0.3)
    assert torch.equal(first, again) and not torch.equal(first, other)


@needs_kernels
@pytest.mark.parametrize("width", [7, 33, 100])
def test_dropout_of_a_seed_is_one_mask_on_every_machine(width):
    """Element e of block b is kept by 16 bits of a hash of (b, e mod 16, seed): nothing in it knows how wide vectors are."""

    def mix(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = (x ^ x >> shift) * factor & 0xFFFFFFFF
        return x

    rows, rate, seed = 3, 0.3, 2**40 + 12345
    expected = torch.zeros(rows, width, dtype=torch.bool)
    for row in range(rows):
        for i in range(width):
            block = row * -(-width // 32) + i // 32
            bits = mix(mix((block * 16 + i % 16) ^ seed % 2**32) + (seed >> 32) & 0xFFFFFFFF)
            expected[row, i] = (bits >> 16 if i % 32 >= 16 else bits & 0xFFFF) < round(rate * 65536)
    assert torch.equal(fused.kernels.dropout_add(torch.zeros(rows, width), torch.ones(rows, width), rate, seed) == 0, expected)


@needs_kernels
def test_dropout_does_not_depend_on_the_number_of_threads():
    """The same seed drops the same elements on one thread and on two."""
    threads = torch.get_num_threads()
    torch.manual_seed(7)
    one = dropped(0.3)
    try:
        torch.set_num_threads(2)
        torch.manual_seed(7)
        two = dropped(0.3)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [32, 45])
def test_the_gradient_of_dropout_passes_where_it_kept(width, dtype):
    """d(x + m y) / dy = m, the factor of the forward pass, and d / dx = 1."""
    torch.manual_seed(8)
    x, y = random(30, width), torch.ones(30, width, dtype=dtype, requires_grad=True)
    out = fused.dropout_add(x, y, 0.3)
    grad_x, grad_y = torch.autograd.grad(out.sum(), (x, y))
    factor = (out - x).detach()
    torch.testing.assert_close(grad_x, torch.ones_like(x), rtol=0, atol=0)
    torch.testing.assert_close(grad_y.float(), factor, rtol=2**-7, atol=1e-6)


CHANGES = {
    "in place": lambda linear: linear.weight.zero_(),
    "in a part": lambda linear: linear.weight[1:3].zero_(),
    "by load_state_dict": lambda linear: linear.load_state_dict({"weight": torch.zeros(4, 4), "bias": torch.ones(4)}),
    "by another tensor": lambda linear: setattr(linear.weight, "data", torch.zeros(4, 4)),
    "through .data": lambda linear: linear.weight.data.zero_(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_a_weight_changed_between_two_batches_of_an_evaluation_is_cast_again(change, which, dtype):
    """Head ablation, averaging in place, a submodule's load, an optimizer's step; of query, key and value."""
    projections = [torch.nn.Linear(4, 4).eval() for _ in range(3)]
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fused.linear(x, dtype, *projections)
        CHANGES[change](projections[which])
        expected = torch.cat([x.to(dtype) @ p.weight.to(dtype).t() + p.bias.to(dtype) for p in projections], dim=1)
        torch.testing.assert_close(fused.linear(x, dtype, *projections), expected, rtol=2**-7, atol=2**-7)


@torch.no_grad()
def test_a_search_casts_each_weight_once_and_forgets_it():
    """Inside weights_at_rest, for the same weights in the same order and type."""
    query, key = (torch.nn.Parameter(torch.randn(4, 4)) for _ in range(2))
    with fused.weights_at_rest():
        both = fused.cast(torch.bfloat16, query, key)
        assert fused.cast(torch.bfloat16, query, key) is both
        assert fused.cast(torch.bfloat16, key, query) is not both and fused.cast(torch.float32, query, key) is not both
        with torch.enable_grad():
            assert fused.cast(torch.bfloat16, query, key) is not both
    assert fused.cast(torch.bfloat16, query, key) is not both


@torch.no_grad()
def test_a_weight_that_is_worked_out_at_each_call_is_cast_each_time():
    """Quantized and parametrized ones: a new tensor may have the number of one that is gone."""
    weight = torch.randn(4, 4)
    with fused.weights_at_rest():
        assert fused.cast(torch.bfloat16, weight) is not fused.cast(torch.bfloat16, weight)


@torch.no_grad()
def test_searches_in_two_threads_keep_casts_of_their_own():
    """One that ends does not leave its casts to what follows in the other."""
    weight, seen = torch.nn.Parameter(torch.randn(4, 4)), []
    with fused.weights_at_rest():
        fused.cast(torch.bfloat16, weight)
        thread = threading.Thread(target=lambda: seen.append(fused.kept_casts.get()))
        thread.start()
        thread.join()
    assert seen == [None]


class LowRank(torch.nn.Module):
    """A linear map with a trained addition beside its frozen weight."""

    def __init__(self, base):
        super().__init__()
        self.base, self.more = base, torch.nn.Parameter(torch.full_like(base.weight, 0.1))

    def forward(self, x):
        """The sum of both."""
        return self.base(x) + x @ self.more.t()


def test_a_module_that_takes_the_place_of_a_linear_one_is_called():
    """Low-rank adaptation of one of two projections: its part is in the output and gets a gradient."""
    one, other = LowRank(torch.nn.Linear(4, 4)), torch.nn.Linear(4, 4)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    out = fused.linear(x, torch.float32, one, other)
    torch.testing.assert_close(out, torch.cat([one(x), other(x)], dim=1))
    out.sum().backward()
    assert one.more.grad is not None


@pytest.mark.parametrize("where", ["a subclass", "the instance"])
def test_another_forward_of_a_linear_module_is_called(where):
    """As those of quantization in integers, or one that is patched."""
    module = torch.nn.Linear(4, 4)
    if where == "a subclass":
        module.__class__ = type("Doubled", (torch.nn.Linear,), {"forward": lambda self, x: 2 * x})
    else:
        module.forward = lambda x: 2 * x
    x = torch.randn(3, 4)
    torch.testing.assert_close(fused.linear(x, torch.float32, module), 2 * x)


def test_a_loss_without_gradients_makes_none(monkeypatch):
    """Validation: two of the three products with the output weight are for the gradient."""
    asked = []
    rows = fused.label_smoothed_rows
    monkeypatch.setattr(fused, "label_smoothed_rows", lambda *args: asked.append(args[-1]) or rows(*args))
    weight, features, target = torch.nn.Parameter(torch.randn(5, 4)), random(3, 4), torch.tensor([0, 1, 2])
    with torch.no_grad():
        loss, nll = fused.label_smoothed_nll(features, weight, target, 0.1, torch.float32)
    with_gradient, nll_with = fused.label_smoothed_nll(features, weight, target, 0.1, torch.float32)
    assert asked == [False, True] and torch.equal(loss, with_gradient) and torch.equal(nll, nll_with)


def of_the_formula(features, weight, target):
    """Gradients of fairseq's loss, with smoothing 0.1, by autograd in the type of the parameters."""
    features, weight = features.detach().requires_grad_(), weight.detach().requires_grad_()
    lprobs = torch.log_softmax((features @ weight.t()).float(), dim=-1)
    smooth = 0.1 / (len(weight) - 1)
    loss = -(1 - 0.1 - smooth) * lprobs.gather(1, target[:, None]).sum() - smooth * lprobs.sum()
    return torch.autograd.grad(loss, (features, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_loses_no_more_in_the_loss_than_in_fairseqs(dtype):
    """--bf16, --fp16: the output weight's gradient over many blocks of rows is rounded once."""
    features, weight = random(16 * fused.LOGIT_ROWS, 16, dtype=dtype), random(40, 16, dtype=dtype, seed=1)
    target = torch.randint(40, (len(features),), generator=torch.Generator().manual_seed(2))
    loss, _ = fused.label_smoothed_nll(features, weight, target, 0.1, torch.float32)
    ours = torch.autograd.grad(loss.sum(), (features, weight))
    stock = of_the_formula(features, weight, target)
    for mine, theirs, exact in zip(ours, stock, of_the_formula(features.double(), weight.double(), target), strict=True):
        assert mine.dtype == dtype
        assert (mine - exact).norm() <= 1.1 * (theirs - exact).norm()


@pytest.mark.parametrize("amp", [False, True])
def test_small_gradients_survive_until_the_loss_scale(amp):
    """--fp16 and --amp: a probability of 1e-5 is below what float16 holds with precision, and the loss is scaled after it."""
    features, weight = torch.zeros(1, 16), torch.zeros(3, 16)
    features[0, 0], weight[0, 0] = 1.0, 12.0
    if not amp:
        features, weight = features.half(), weight.half()
    features, weight = features.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16, enabled=amp):
        loss, _ = fused.label_smoothed_nll(features, weight, torch.tensor([0]), 0.0, torch.float32)
        scaled = 2.0**14 * loss.sum()
    _, gradient = torch.autograd.grad(scaled, (features, weight))
    expected = torch.softmax(torch.tensor([12.0, 0.0, 0.0]), 0)[1].item()
    assert gradient[1, 0].item() / 2**14 == pytest.approx(expected, rel=2e-3)


def test_losses_weighted_row_by_row_are_refused_and_not_wrong():
    """Their gradient is made in the forward pass, for one weight; a mean is one too."""
    weight, features, target = torch.nn.Parameter(torch.randn(5, 4)), random(3, 4), torch.tensor([0, 1, 2])
    loss, _ = fused.label_smoothed_nll(features, weight, target, 0.1, torch.float32)
    with pytest.raises(RuntimeError, match="not weighted row by row"):
        (loss * torch.arange(3.0)).sum().backward()
    loss, _ = fused.label_smoothed_nll(features, weight, target, 0.1, torch.float32)
    (loss * torch.full((3,), 2.0)).sum().backward()


def test_the_loss_sees_a_weight_that_an_optimizer_changed():
    """The output projection is cast anew for every batch, also with gradients."""
    weight, features = torch.nn.Parameter(torch.randn(5, 4)), random(3, 4)
    target = torch.tensor([0, 1, 2])
    fused.label_smoothed_nll(features, weight, target, 0.0, torch.bfloat16)
    weight.data.zero_()
    loss, _ = fused.label_smoothed_nll(features, weight, target, 0.0, torch.bfloat16)
    torch.testing.assert_close(loss, torch.full((3,), math.log(5)))


def test_training_in_bfloat16_and_its_validation_use_the_weights_of_the_update(data_bin, fairseq_train, tmp_path):
    """What fairseq-train logs as validation loss after an epoch is what a fresh process finds in that epoch's checkpoint."""
    common = [data_bin, "--arch", "transformer_ln_study_tiny", "--compute-dtype", "bfloat16", "--ln-position", "pre",
              "--lr", "5e-3", "--criterion", "fused_label_smoothed_cross_entropy", "--optimizer", "fused_adam",
              "--lr-scheduler", "no_warmup", "--max-tokens", "1000", "--log-format", "json", "--save-dir", tmp_path,
              "--required-batch-size-multiple", "1"]  # fmt: skip
    log = fairseq_train([*common, "--max-epoch", "3"]).log
    trained = [json.loads(line[line.index("{") :]) for line in log.splitlines() if "| valid | {" in line]
    assert float(trained[-1]["valid_loss"]) < float(trained[0]["valid_loss"]) - 0.2
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "checkpoint3.pt")])
    task.load_dataset("valid")
    criterion = fused_label_smoothed_cross_entropy.FusedLabelSmoothedCrossEntropy(task, False, 0.0)
    loss = tokens = 0
    with torch.no_grad():
        batches = task.get_batch_iterator(task.dataset("valid"), max_tokens=1000, required_batch_size_multiple=1)
        for batch in batches.next_epoch_itr(shuffle=False):
            batch_loss, sample_size, _ = criterion(models[0].eval(), batch)
            loss, tokens = loss + batch_loss.item(), tokens + sample_size
    assert abs(loss / tokens / math.log(2) - float(trained[-1]["valid_loss"])) < 2e-3
