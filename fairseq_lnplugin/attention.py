"""The fast forward of fairseq's MultiheadAttention: one product for all projections of one input, in the compute dtype.

Functions over fairseq's own module, whose parameters and masks stay as they are. In fairseq's incremental state our history has
a form of its own (:func:`append_to_history`); one in fairseq's form, given by a caller, is read once and converted. TorchScript,
which compiles no Python-side dispatch, and a module with hooks or another forward run that module's own.
"""

import math

import torch
from fairseq.modules import MultiheadAttention

from fairseq_lnplugin import fused

#: Steps that the history of a hypothesis has room for at first; the room doubles when they are used up.
HISTORY_STEPS = 32


def attend(attention, dtype, x, memory=None, key_padding_mask=None, attn_mask=None, incremental_state=None, need_weights=False):
    """Attention from ``x`` to itself, or to ``memory`` where ``attention`` is an encoder-decoder attention.

    ``attention``: fairseq's MultiheadAttention; ``dtype``: of its products; ``x``: ``(tgt_len, batch, embed_dim)``; ``memory``:
    ``(src_len, batch, kdim)``; ``key_padding_mask``: ``(batch, src_len)``, true at pads; ``attn_mask``: ``(tgt_len, src_len)``,
    added to the scores, or bool and true where attention is forbidden; ``incremental_state``: fairseq's, where keys and values of
    earlier calls are kept. Returns the output ``(tgt_len, batch, embed_dim)`` in ``dtype`` and the attention probabilities
    ``(heads, batch, tgt_len, src_len)`` if ``need_weights``, else None.
    """
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, device=attn_mask.device).masked_fill_(attn_mask, float("-inf"))
    if not fused.is_plain(attention, MultiheadAttention):
        own = next(attention.parameters(), x)
        x, memory = (None if states is None else states.to(own.dtype) for states in (x, memory))
        y, weights = attention(
            query=x,
            key=x if memory is None else memory,
            value=x if memory is None else memory,
            key_padding_mask=key_padding_mask,
            incremental_state=incremental_state,
            static_kv=attention.encoder_decoder_attention,
            need_weights=need_weights,
            need_head_weights=need_weights,
            attn_mask=attn_mask,
        )
        return y.to(fused.compute_dtype_of(own, dtype)), weights
    if attention.encoder_decoder_attention:
        q = by_heads(attention, fused.linear(x, dtype, attention.q_proj))
        if incremental_state is None:
            k, v = memory_keys(attention, dtype, memory)
        else:
            k, v, origin = kept_memory_keys(attention, dtype, memory, key_padding_mask, incremental_state, x.size(1))
    else:
        qkv = fused.linear(x, dtype, attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (by_heads(attention, part) for part in qkv.chunk(3, dim=-1))
        if incremental_state is not None:
            k, v, origin = append_to_history(attention, k, v, key_padding_mask, incremental_state)
    dropout = attention.dropout_module
    p = dropout.p if attention.training or dropout.apply_during_inference else 0.0
    if incremental_state is not None:
        y, weights = fused.history_attention(q, k, v, origin, attn_mask, p, need_weights)
    else:
        pads = None if key_padding_mask is None else key_padding_mask.bool()
        y, weights = fused.attention(q, k, v, pads, attn_mask, p, need_weights)
    return fused.linear(y, dtype, attention.out_proj), weights


def memory_keys(attention, dtype, memory):
    """Keys and values ``(src_len, batch, heads, head_dim)`` of an encoder output."""
    kv = fused.linear(memory, dtype, attention.k_proj, attention.v_proj)
    return tuple(by_heads(attention, part) for part in kv.chunk(2, dim=-1))


def kept_memory_keys(attention, dtype, memory, key_padding_mask, incremental_state, batch):
    """Keys, values and ``origin`` of an encoder output: made at the first word, and kept in ``incremental_state``.

    All beams of a sentence, which are equal rows of ``memory`` side by side, share one copy. Keys and values ``(src_len,
    sentences, heads, head_dim)`` stay where they are; ``origin`` ``(batch, src_len)`` says whose they are, as in a history. Of it
    fairseq's search drops the rows of finished sentences, and reorders it then only: the beams of a sentence have the same.
    """
    saved, history = attention._get_input_buffer(incremental_state), attention.get_incremental_state(incremental_state, "history")
    if "origin" not in saved:
        if "prev_key" in saved:  # keys and values that the caller gave, in fairseq's form
            dtype = fused.compute_dtype_of(attention.k_proj.weight, dtype)
            keys, values = (from_cache(saved[name]).to(dtype) for name in ("prev_key", "prev_value"))
            key_padding_mask = saved.get("prev_key_padding_mask")
        else:
            keys, values = memory_keys(attention, dtype, memory[:, :: equal_neighbours(memory, key_padding_mask)])
        history = {"keys": keys, "values": values}
        rows = torch.arange(batch, device=keys.device) // (batch // keys.size(1))
        saved = {"origin": origin_of(rows, keys.size(0), key_padding_mask)}
        attention.set_incremental_state(incremental_state, "history", history)
        attention._set_input_buffer(incremental_state, saved)
    return history["keys"], history["values"], saved["origin"]


def origin_of(rows, steps, pads):
    """``(batch, steps)``: where a hypothesis' steps lie, all in its entry of ``rows`` ``(batch,)``; -1 at pads."""
    origin = rows[:, None].repeat(1, steps)
    return origin if pads is None else origin.masked_fill_(pads.bool(), -1)


def equal_neighbours(memory, pads):
    """The largest number N for which a batch is groups of N equal rows side by side, as a search makes them of its beams.

    Found once and kept on ``memory``, about which every layer of a decoder asks.
    """
    kept = getattr(memory, "_equal_neighbours", None)
    if kept is None or kept[0] is not pads:
        other = (memory[:, 1:] != memory[:, :-1]).any(dim=2).any(dim=0)
        if pads is not None:
            other |= (pads[1:] != pads[:-1]).any(dim=1)
        kept = pads, math.gcd(memory.size(1), *(other.nonzero().flatten() + 1).tolist())
        memory._equal_neighbours = kept
    return kept[1]


def append_to_history(attention, k, v, key_padding_mask, incremental_state):
    """Put this call's keys and values after those of earlier calls, in place; return all of them, and whose they are.

    Keys and values ``(steps, rows, heads, head_dim)`` stay where they were written. What fairseq's search reorders at every word
    is ``origin`` ``(batch, steps)``, small numbers in their place: see :func:`~fairseq_lnplugin.fused.history_attention`.
    """
    saved = attention._get_input_buffer(incremental_state)
    origin, history = saved.get("origin"), attention.get_incremental_state(incremental_state, "history")
    if "prev_key" in saved:  # a history that the caller gave, in fairseq's form
        k, v = (torch.cat([from_cache(saved[f"prev_{name}"]).to(new), new]) for name, new in (("key", k), ("value", v)))
        key_padding_mask = attention._append_prev_key_padding_mask(
            key_padding_mask, saved.get("prev_key_padding_mask"), k.size(1), k.size(0), static_kv=False
        )
        origin = None
    new, batch = k.shape[:2]
    latest = origin_of(torch.arange(batch, device=k.device), new, key_padding_mask)
    if origin is None:
        before, origin, history = 0, latest, {}
    else:
        before, origin = origin.size(1), torch.cat([origin, latest], dim=1)
    for name, rows in (("keys", k), ("values", v)):
        history[name] = with_room(history.get(name), before, before + new, rows)
        history[name][before : before + new, :batch] = rows
    attention.set_incremental_state(incremental_state, "history", history)
    attention._set_input_buffer(incremental_state, {"origin": origin})
    return history["keys"][: before + new], history["values"][: before + new], origin


def with_room(kept, before, steps, rows):
    """A tensor with room for ``steps`` steps of ``rows``, the first ``before`` of them those of ``kept``."""
    if kept is not None and kept.size(0) >= steps and kept.size(1) >= rows.size(1):
        return kept
    shape = (max(2 * steps, HISTORY_STEPS), max(rows.size(1), 0 if kept is None else kept.size(1)), *rows.shape[2:])
    larger = rows.new_empty(shape)
    if kept is not None:
        larger[:before, : kept.size(1)] = kept[:before]
    return larger


def by_heads(attention, x):
    """``(len, batch, embed_dim)`` to ``(len, batch, heads, head_dim)``, without a copy."""
    return x.unflatten(-1, (attention.num_heads, attention.head_dim))


def from_cache(k):
    """Fairseq's ``(batch, heads, len, head_dim)`` to ``(len, batch, heads, head_dim)``, without a copy."""
    return k.permute(2, 0, 1, 3)
