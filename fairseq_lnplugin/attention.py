"""The fast forward of fairseq's MultiheadAttention: one product for all projections of one input, in the compute dtype.

Functions over fairseq's own module, whose parameters, incremental state and masks stay as they are: TorchScript, which compiles
no Python-side dispatch, runs that module's own forward.
"""

import torch

from fairseq_lnplugin import fused


def attend(
    attention, dtype, x, memory=None, key_padding_mask=None, attn_mask=None, incremental_state=None, need_weights=False
):
    """Attention from ``x`` to itself, or to ``memory`` where ``attention`` is an encoder-decoder attention.

    ``attention``: fairseq's MultiheadAttention; ``dtype``: of its products; ``x``: ``(tgt_len, batch, embed_dim)``; ``memory``:
    ``(src_len, batch, kdim)``; ``key_padding_mask``: ``(batch, src_len)``, true at pads; ``attn_mask``: ``(tgt_len, src_len)``,
    added to the scores; ``incremental_state``: fairseq's, where keys and values of earlier calls are kept. Returns the output
    ``(tgt_len, batch, embed_dim)`` in ``dtype`` and the attention probabilities ``(heads, batch, tgt_len, src_len)`` if
    ``need_weights``, else None.
    """
    if attention.encoder_decoder_attention:
        q = by_heads(attention, fused.linear(x, dtype, attention.q_proj))
        k, v, key_padding_mask = memory_keys(attention, dtype, memory, key_padding_mask, incremental_state, x.size(1))
    else:
        qkv = fused.linear(x, dtype, attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (by_heads(attention, part) for part in qkv.chunk(3, dim=-1))
        if incremental_state is not None:
            k, v, key_padding_mask = append_to_cache(attention, k, v, key_padding_mask, incremental_state)
    dropout = attention.dropout_module
    y, weights = fused.attention(
        q,
        k,
        v,
        None if key_padding_mask is None else key_padding_mask.bool(),
        attn_mask,
        dropout.p if attention.training or dropout.apply_during_inference else 0.0,
        need_weights,
    )
    return fused.linear(y, dtype, attention.out_proj), weights


def memory_keys(attention, dtype, memory, key_padding_mask, incremental_state, batch):
    """Keys, values ``(src_len, key_batch, heads, head_dim)`` and padding mask of the encoder output, computed once a sentence."""
    saved = attention._get_input_buffer(incremental_state) if incremental_state is not None else {}
    if "prev_key" not in saved:
        if attention.beam_size > 1 and memory.size(1) == batch:
            memory = memory[:, :: attention.beam_size]  # every beam of a sentence reads the same encoder output
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[:: attention.beam_size]
        kv = fused.linear(memory, dtype, attention.k_proj, attention.v_proj)
        k, v = (by_heads(attention, part) for part in kv.chunk(2, dim=-1))
        if incremental_state is None:
            return k, v, key_padding_mask
        keys, values = to_cache(k), to_cache(v)
        saved = {"prev_key": keys, "prev_value": values, "prev_key_padding_mask": key_padding_mask}
        attention._set_input_buffer(incremental_state, saved)
    return (
        from_cache(saved["prev_key"]),
        from_cache(saved["prev_value"]),
        saved.get("prev_key_padding_mask"),
    )


def append_to_cache(attention, k, v, key_padding_mask, incremental_state):
    """Put this call's keys and values after the cached ones and return all of them with their padding mask."""
    saved = attention._get_input_buffer(incremental_state)
    keys, values, mask = to_cache(k), to_cache(v), key_padding_mask
    if "prev_key" in saved:
        keys = torch.cat([saved["prev_key"], keys], dim=2)
        values = torch.cat([saved["prev_value"], values], dim=2)
        mask = attention._append_prev_key_padding_mask(
            key_padding_mask, saved.get("prev_key_padding_mask"), keys.size(0), keys.size(2), static_kv=False
        )
    attention._set_input_buffer(
        incremental_state, {"prev_key": keys, "prev_value": values, "prev_key_padding_mask": mask}
    )
    return from_cache(keys), from_cache(values), mask


def by_heads(attention, x):
    """``(len, batch, embed_dim)`` to ``(len, batch, heads, head_dim)``, without a copy."""
    return x.unflatten(-1, (attention.num_heads, attention.head_dim))


def to_cache(k):
    """``(len, batch, heads, head_dim)`` to fairseq's ``(batch, heads, len, head_dim)``."""
    return k.permute(1, 2, 0, 3).contiguous()


def from_cache(k):
    """Fairseq's ``(batch, heads, len, head_dim)`` to ``(len, batch, heads, head_dim)``, without a copy."""
    return k.permute(2, 0, 1, 3)
