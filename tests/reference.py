"""The paper's Table 1 in plain torch, without fairseq: the oracle of the models' tests.

``logits`` (translation) and ``bert_features``, ``masked_lm_logits`` (BERT) take the parameters by fairseq's names and compute
what Xiong et al. 2020 print: Post-LN ``x = LN(x + f(x))``, Pre-LN ``x = x + f(LN(x))`` and one LN after each stack.
"""

import math

import torch


def layer_norm(x, p, name):
    """LN over the last dimension with gain and bias ``name.weight``, ``name.bias``."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x, p, name):
    """``x W^T + b``."""
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def attention(x, memory, p, name, heads, forbidden):
    """Multi-head attention of ``x (batch, T, d)`` to ``memory (batch, S, d)``; ``forbidden`` broadcasts to (batch, T, S)."""
    d = x.size(-1) // heads
    q, k, v = linear(x, p, f"{name}.q_proj"), linear(memory, p, f"{name}.k_proj"), linear(memory, p, f"{name}.v_proj")
    out = []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        scores = (q[..., part] @ k[..., part].transpose(1, 2)) / math.sqrt(d)
        out.append(torch.softmax(scores.masked_fill(forbidden, float("-inf")), dim=-1) @ v[..., part])
    return linear(torch.cat(out, dim=-1), p, f"{name}.out_proj")


def sublayer(x, f, p, norm, position):
    """One sub-layer with branch ``f``, its LN named ``norm``."""
    return x + f(layer_norm(x, p, norm)) if position == "pre" else layer_norm(x + f(x), p, norm)


def positions(tokens, pad):
    """``(batch, T)``: they count from pad + 1 and skip pads, which have ``pad`` itself."""
    real = tokens.ne(pad)
    return torch.cumsum(real, dim=1) * real + pad


def embed(tokens, p, stack, pad):
    """Word embedding times sqrt(d) plus sinusoids; positions count from pad + 1 and skip pads."""
    table = p[f"{stack}.embed_tokens.weight"]
    d = table.size(1)
    real = tokens.ne(pad)
    position = positions(tokens, pad).to(table.dtype)
    rates = torch.exp(torch.arange(d // 2, dtype=table.dtype) * -(math.log(10000) / (d // 2 - 1)))
    angles = position[..., None] * rates
    sinusoids = torch.cat([angles.sin(), angles.cos()], dim=-1) * real[..., None]
    return table[tokens] * math.sqrt(d) + sinusoids


def ffn(x, p, name, activation=torch.relu):
    """FFN(x) = act(x W1 + b1) W2 + b2."""
    return linear(activation(linear(x, p, f"{name}.fc1")), p, f"{name}.fc2")


def encode(x, pads, p, stack, layers, heads, position, activation=torch.relu):
    """A stack of encoder layers on ``x (batch, S, d)``; ``pads``: ``(batch, 1, S)``, true at pads."""
    for i in range(layers):
        n = f"{stack}.layers.{i}"
        x = sublayer(
            x, lambda y, n=n: attention(y, y, p, f"{n}.self_attn", heads, pads), p, f"{n}.self_attn_layer_norm", position
        )
        x = sublayer(x, lambda y, n=n: ffn(y, p, n, activation), p, f"{n}.final_layer_norm", position)
    return layer_norm(x, p, f"{stack}.layer_norm") if position == "pre" else x


def logits(p, src, prev, layers, heads, position, pad):
    """``(batch, tgt_len, vocab)`` of an encoder-decoder with ``layers`` layers a stack."""
    x = embed(src, p, "encoder", pad) * src.ne(pad)[..., None]
    pads = src.eq(pad)[:, None, :]
    memory = encode(x, pads, p, "encoder", layers, heads, position)
    x = embed(prev, p, "decoder", pad)
    later = torch.ones(prev.size(1), prev.size(1), dtype=torch.bool).triu(1)[None]
    for i in range(layers):
        n = f"decoder.layers.{i}"
        x = sublayer(
            x, lambda y, n=n: attention(y, y, p, f"{n}.self_attn", heads, later), p, f"{n}.self_attn_layer_norm", position
        )
        x = sublayer(
            x,
            lambda y, n=n: attention(y, memory, p, f"{n}.encoder_attn", heads, pads),
            p,
            f"{n}.encoder_attn_layer_norm",
            position,
        )
        x = sublayer(x, lambda y, n=n: ffn(y, p, n), p, f"{n}.final_layer_norm", position)
    x = layer_norm(x, p, "decoder.layer_norm") if position == "pre" else x
    return x @ p["decoder.output_projection.weight"].T


def gelu(x):
    """``x P(Z <= x)`` for Z ~ N(0, 1) (Hendrycks & Gimpel 2016), not its approximation by tanh."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def bert_features(p, tokens, layers, heads, position, pad):
    """``(batch, T, d)`` of BERT's encoder (Devlin et al. 2018), whose embeddings have an LN in Post-LN only."""
    stack = "encoder.sentence_encoder"
    x = p[f"{stack}.embed_tokens.weight"][tokens] + p[f"{stack}.embed_positions.weight"][positions(tokens, pad)]
    if position == "post":
        x = layer_norm(x, p, f"{stack}.layernorm_embedding")
    return encode(x, tokens.eq(pad)[:, None, :], p, stack, layers, heads, position, gelu)


def masked_lm_logits(features, p):
    """``(rows, vocab)`` of features ``(rows, d)``: LN(GELU(x W + b)) E^T + c with the word embeddings E."""
    x = layer_norm(gelu(linear(features, p, "encoder.lm_head.dense")), p, "encoder.lm_head.layer_norm")
    return x @ p["encoder.sentence_encoder.embed_tokens.weight"].T + p["encoder.lm_head.bias"]


def assert_equal_gradients(ours, theirs):
    """Each to 1e-5 of its norm; those of the keys' biases, which softmax makes 0 but for rounding, to 1e-5 of the largest."""
    assert ours.keys() == theirs.keys()
    largest = max(gradient.norm() for gradient in theirs.values())
    for name, gradient in theirs.items():
        scale = largest if name.endswith("k_proj.bias") else gradient.norm()
        assert (ours[name] - gradient).norm() <= 1e-5 * scale, name
