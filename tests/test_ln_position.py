"""ln_position.py, layers.py: later arrangements fit the interface, each a small class here, against its formula.

The classes are the tests' own (the plug-in has Pre-LN and Post-LN only). ``formula_*`` run a stack in plain torch as
the method's paper prints it: ``x`` is what enters the stack, ``layers`` a list of layers, each a list of branches
``(f, ln)`` with ``f`` the sub-layer and ``ln`` the name of its norm; ``final`` is the name of the norm after the stack.
"""

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from reference import attention, ffn, layer_norm
from tiny_models import built, dictionary, task_of

from fairseq_lnplugin import fused
from fairseq_lnplugin.ln_position import LN_POSITIONS, PostLN, PreLN, SublayerNorm

TASK = task_of(dictionary(60))
PAD = TASK.source_dictionary.pad()
LAYERS, HEADS = 2, 2


class B2T(PostLN):
    """Takase et al. 2022, arXiv 2206.00330: Post-LN whose last norm of a layer also gets the layer's input."""

    def __init__(self, place):
        super().__init__(place)
        self.is_last = place.sublayer == "ffn"

    def leave(self, x: torch.Tensor, y: torch.Tensor, layer_input: torch.Tensor, dropout: float) -> torch.Tensor:
        stream = x + layer_input if self.is_last else x
        return self.normalize(fused.dropout_add(stream, y, dropout), x.dtype)


def formula_b2t(x, layers, p, final):
    for layer in layers:
        x_in = x
        for f, ln in layer[:-1]:
            x = layer_norm(x + f(x), p, ln)
        f, ln = layer[-1]
        x = layer_norm(x_in + x + f(x), p, ln)
    return x


class BothStreams(nn.LayerNorm):
    """The end of a ResiDual stack: ``p + LN(q)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p, q = x.chunk(2, dim=-1)
        return p + F.layer_norm(q, self.normalized_shape, self.weight, self.bias, self.eps)


class ResiDual(SublayerNorm):
    """Xie et al. 2023, arXiv 2304.14802: p as Post-LN, q as Pre-LN, one branch; p and q side by side in x."""

    final_norm = BothStreams

    def __init__(self, place):
        super().__init__(place)
        self.embed_dim = place.embed_dim

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, : self.embed_dim]

    def leave(self, x: torch.Tensor, y: torch.Tensor, layer_input: torch.Tensor, dropout: float) -> torch.Tensor:
        y = F.dropout(y, dropout, dropout > 0)
        p = x[:, :, : self.embed_dim]
        q = x[:, :, -self.embed_dim :]  # p itself where the stack begins
        return torch.cat([self.normalize(fused.dropout_add(p, y, 0.0), x.dtype), q + y], dim=-1)


def formula_residual(x, layers, p, final):
    q = x
    for f, ln in sum(layers, []):
        y = f(x)
        x, q = layer_norm(x + y, p, ln), q + y
    return x + layer_norm(q, p, final)


class Admin(PostLN):
    """Liu et al. 2020, arXiv 2004.08249: ``LN(omega x + f(x))``, omega a vector, trained; admin-torch's start."""

    def __init__(self, place):
        super().__init__(place)
        n = 2 * place.encoder_layers if place.stack == "encoder" else 3 * place.decoder_layers
        self.omega = nn.Parameter(torch.full((place.embed_dim,), math.sqrt((n + 1) / math.log(n + 1) - 1)))

    def leave(self, x: torch.Tensor, y: torch.Tensor, layer_input: torch.Tensor, dropout: float) -> torch.Tensor:
        return self.normalize(fused.dropout_add(self.omega * x, y, dropout), x.dtype)


def formula_admin(x, layers, p, final):
    for f, ln in sum(layers, []):
        x = layer_norm(p[f"{ln}.omega"] * x + f(x), p, ln)
    return x


class DeepNorm(PostLN):
    """Wang et al. 2022, arXiv 2203.00555: ``LN(alpha x + f(x))``, alpha of both depths."""

    def __init__(self, place):
        super().__init__(place)
        n, m = place.encoder_layers, place.decoder_layers
        self.alpha = 0.81 * (n**4 * m) ** (1 / 16) if place.stack == "encoder" else (3 * m) ** 0.25

    def leave(self, x: torch.Tensor, y: torch.Tensor, layer_input: torch.Tensor, dropout: float) -> torch.Tensor:
        return self.normalize(fused.dropout_add(self.alpha * x, y, dropout), x.dtype)


def formula_deepnorm(x, layers, p, final):
    # 2-2 layers: 0.81 * 2^(5/16) and 6^(1/4)
    alpha = 1.0058989 if final.startswith("encoder") else 1.5650846
    for f, ln in sum(layers, []):
        x = layer_norm(alpha * x + f(x), p, ln)
    return x


class Sandwich(PreLN):
    """Ding et al. 2021, arXiv 2105.13290: ``x + LN'(f(LN(x)))``, the second norm a module of its own."""

    def __init__(self, place):
        super().__init__(place)
        self.after = nn.LayerNorm(place.embed_dim)

    def leave(self, x: torch.Tensor, y: torch.Tensor, layer_input: torch.Tensor, dropout: float) -> torch.Tensor:
        return fused.dropout_add(x, self.after(y.to(x.dtype)), dropout)


def formula_sandwich(x, layers, p, final):
    for f, ln in sum(layers, []):
        x = x + layer_norm(f(layer_norm(x, p, ln)), p, f"{ln}.after")
    return layer_norm(x, p, final)


class MixLN:
    """Li et al. 2024, arXiv 2412.13795, of two layers: the first Post-LN, the second Pre-LN."""

    final_norm = nn.LayerNorm

    def __new__(cls, place):
        return PostLN(place) if place.layer == 1 else PreLN(place)


def formula_mix(x, layers, p, final):
    for f, ln in layers[0]:
        x = layer_norm(x + f(x), p, ln)
    for f, ln in layers[1]:
        x = x + f(layer_norm(x, p, ln))
    return layer_norm(x, p, final)


#: Peri-LN (arXiv 2502.02732) is Sandwich-LN with an LN on the embedding, which is fairseq's own flag.
ARRANGEMENTS = {
    "b2t": (B2T, formula_b2t, {}),
    "residual": (ResiDual, formula_residual, {}),
    "admin": (Admin, formula_admin, {}),
    "deepnorm": (DeepNorm, formula_deepnorm, {}),
    "sandwich": (Sandwich, formula_sandwich, {}),
    "peri": (Sandwich, formula_sandwich, {"layernorm_embedding": True}),
    "mix": (MixLN, formula_mix, {}),
}


@pytest.fixture(params=sorted(ARRANGEMENTS))
def arranged(request, monkeypatch):
    """The arrangement's formula and a model of it with every parameter moved off its start."""
    arrangement, formula, flags = ARRANGEMENTS[request.param]
    monkeypatch.setitem(LN_POSITIONS, request.param, arrangement)
    model = built(TASK, ln_position=request.param, **flags)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return formula, model.eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(2)
    src = torch.randint(4, 60, (3, 7), generator=generator)
    src[1, :2], src[2, :4] = PAD, PAD
    prev = torch.randint(4, 60, (3, 5), generator=generator)
    return {"src_tokens": src, "src_lengths": src.ne(PAD).sum(1), "prev_output_tokens": prev}


def formula_logits(formula, model, src_tokens, src_lengths, prev_output_tokens):
    """``(batch, tgt_len, vocab)``: embeddings by fairseq, the two stacks by ``formula``."""
    p = dict(model.state_dict())
    pads = src_tokens.eq(PAD)[:, None, :]
    later = torch.ones(prev_output_tokens.size(1), prev_output_tokens.size(1), dtype=torch.bool).triu(1)[None]

    def attend(name, forbidden, memory=None):
        return lambda x: attention(x, x if memory is None else memory, p, name, HEADS, forbidden)

    def encoder_layer(n):
        return [
            (attend(f"{n}.self_attn", pads), f"{n}.self_attn_layer_norm"),
            (lambda x: ffn(x, p, n), f"{n}.final_layer_norm"),
        ]

    def decoder_layer(n, memory):
        return [
            (attend(f"{n}.self_attn", later), f"{n}.self_attn_layer_norm"),
            (attend(f"{n}.encoder_attn", pads, memory), f"{n}.encoder_attn_layer_norm"),
            (lambda x: ffn(x, p, n), f"{n}.final_layer_norm"),
        ]

    x = model.encoder.forward_embedding(src_tokens)[0] * src_tokens.ne(PAD)[..., None]
    memory = formula(x, [encoder_layer(f"encoder.layers.{i}") for i in range(LAYERS)], p, "encoder.layer_norm")
    decoder = model.decoder
    x = decoder.embed_scale * decoder.embed_tokens(prev_output_tokens) + decoder.embed_positions(prev_output_tokens)
    if decoder.layernorm_embedding is not None:
        x = decoder.layernorm_embedding(x)
    x = formula(x, [decoder_layer(f"decoder.layers.{i}", memory) for i in range(LAYERS)], p, "decoder.layer_norm")
    return x @ p["decoder.output_projection.weight"].T


def test_an_arrangement_of_one_class_computes_its_papers_formula(arranged, inputs):
    """Logits of encoder and decoder, pads in the source."""
    formula, model = arranged
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs)[0], formula_logits(formula, model, **inputs), rtol=1e-4, atol=2e-5)


def test_an_arrangement_of_one_class_decodes_token_by_token(arranged, inputs):
    """Incremental against full decoding: a wider stream or another norm leaves fairseq's caches alone."""
    model, prev = arranged[1], inputs["prev_output_tokens"]
    with torch.no_grad():
        encoder_out, state = model.encoder.forward_torchscript(inputs), {}
        columns = [model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)[0] for t in range(prev.size(1))]
        torch.testing.assert_close(torch.cat(columns, 1), model.decoder(prev, encoder_out)[0], rtol=1e-4, atol=2e-5)


def test_every_parameter_of_an_arrangement_is_trained(arranged, inputs):
    """One backward pass with dropout reaches each: trained vectors, second norms, final norms."""
    model = arranged[1].train()
    model(**inputs)[0].logsumexp(-1).sum().backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert still == []  # not even a key's bias, whose gradient is 0 but for rounding


def test_an_arrangement_compiles_with_torchscript(arranged, inputs):
    """The scripted model's logits are the eager one's."""
    model = arranged[1]
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(**inputs)[0], model(**inputs)[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("position, encoder, decoder", [("deepnorm", 1.4179, 2.0598), ("admin", 2.0170, 2.3351)])
def test_an_arrangement_knows_stack_and_depths(position, encoder, decoder, monkeypatch):
    """The published factors of 6-6 layers: DeepNorm's alpha, admin-torch's omega."""
    monkeypatch.setitem(LN_POSITIONS, position, ARRANGEMENTS[position][0])
    model = built(ln_position=position, encoder_layers=6, decoder_layers=6)
    for stack, expected in ((model.encoder, encoder), (model.decoder, decoder)):
        norm = stack.layers[-1].final_layer_norm
        factor = norm.alpha if position == "deepnorm" else norm.omega[0].item()
        assert factor == pytest.approx(expected, abs=5e-5)


def test_a_norm_is_told_its_stack_layer_and_sublayer(monkeypatch):
    """Layers count from 1 in each stack; the order is that of the layer's computation."""
    places = []

    class Noted(PostLN):
        def __init__(self, place):
            super().__init__(place)
            places.append((place.stack, place.layer, place.sublayer))

    monkeypatch.setitem(LN_POSITIONS, "noted", Noted)
    built(ln_position="noted", decoder_layers=1)
    encoder = [("encoder", layer, sublayer) for layer in (1, 2) for sublayer in ("self_attn", "ffn")]
    assert places == encoder + [("decoder", 1, sublayer) for sublayer in ("self_attn", "encoder_attn", "ffn")]
