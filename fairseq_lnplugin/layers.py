"""Encoder and decoder layer: sub-layers wired through an arrangement of :mod:`~fairseq_lnplugin.ln_position`.

Parameters keep fairseq's names and shapes, so that checkpoints of fairseq's ``transformer`` load here and the other way
round.
"""

import torch
import torch.nn.functional as F
from fairseq.modules.fairseq_dropout import FairseqDropout
from fairseq.modules.gelu import gelu
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor

from fairseq_lnplugin import fused
from fairseq_lnplugin.attention import attend
from fairseq_lnplugin.ln_position import LN_POSITIONS, Place
from fairseq_lnplugin.weight_init import WEIGHT_INITS

#: fairseq's names of the sub-layers' LNs.
NORM_NAMES = {
    "self_attn": "self_attn_layer_norm",
    "encoder_attn": "encoder_attn_layer_norm",
    "ffn": "final_layer_norm",
}

#: fairseq's own layers, whose place ours take.
STOCK_NAMES = {"encoder": TransformerEncoderLayerBase.__name__, "decoder": TransformerDecoderLayerBase.__name__}
#: fairseq's GELU copies its input to float32 and back; torch's gives the same numbers without.
WITHOUT_COPIES = {gelu: F.gelu}


class Dropout(FairseqDropout):
    """fairseq's dropout, by the kernel where there is one."""

    @classmethod
    def in_place_of(cls, dropout, module_name):
        """The same rate; ``module_name``: fairseq's own class, by which ``--retain-dropout-modules`` knows it."""
        return cls(dropout.p, module_name)

    def forward(self, x, inplace: bool = False):
        """``x`` with elements dropped: in training, and at inference if dropout is retained there."""
        return fused.dropout(x, self.p if self.training or self.apply_during_inference else 0.0, x.dtype)


class Sublayers:
    """What encoder and decoder layer share: their norms, the FFN branch and the dropout rate of a branch."""

    def set_up(self, cfg, stack, layer, *sublayers):
        """Replace the sub-layers' LNs by ones that sit where ``cfg.ln_position`` says, and start the weights anew.

        Activation and its dropout become faster ones of the same mathematics.
        """
        self.activation_fn = WITHOUT_COPIES.get(self.activation_fn, self.activation_fn)
        self.dropout_module.module_name = STOCK_NAMES[stack]
        self.activation_dropout_module = Dropout.in_place_of(self.activation_dropout_module, STOCK_NAMES[stack])
        self.compute_dtype = fused.COMPUTE_DTYPES[cfg.compute_dtype]
        depths = (cfg.encoder.layers, cfg.decoder.layers)
        for sublayer in sublayers:
            place = Place(stack, layer, sublayer, *depths, self.embed_dim, self.compute_dtype)
            setattr(self, NORM_NAMES[sublayer], LN_POSITIONS[cfg.ln_position](place))
        WEIGHT_INITS[cfg.weight_init](self)

    def branch_dropout(self) -> float:
        """The rate of dropout on a branch's output: 0 outside training, unless dropout is retained at inference."""
        dropout = self.dropout_module
        return dropout.p if self.training or dropout.apply_during_inference else 0.0

    def ffn(self, x: Tensor) -> Tensor:
        """FFN(x) = act(x W1 + b1) W2 + b2, ``(len, batch, embed_dim)`` to the same."""
        if torch.jit.is_scripting():
            return self.fc2(self.activation_dropout_module(self.activation_fn(self.fc1(x))))
        else:
            h = self.activation_fn(fused.linear(x, self.compute_dtype, self.fc1))
            return fused.linear(self.activation_dropout_module(h), self.compute_dtype, self.fc2)


class EncoderLayer(Sublayers, TransformerEncoderLayerBase):
    """Self-attention and FFN, each with its LN where ``cfg.ln_position`` says (paper, Table 1).

    ``layer``: which one of its stack, from 1.
    """

    def __init__(self, cfg, layer):
        super().__init__(cfg)
        self.set_up(cfg, "encoder", layer, "self_attn", "ffn")

    def forward(self, x, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None):
        """One layer.

        ``x``: ``(src_len, batch, embed_dim)``; ``encoder_padding_mask``: ``(batch, src_len)``, true at pads;
        ``attn_mask``: ``(src_len, src_len)``, nonzero where attention is forbidden. Returns the shape of ``x``.
        """
        if attn_mask is not None:
            # a finite number as in fairseq: with -inf a row that may attend to nothing would turn into NaN
            attn_mask = attn_mask.masked_fill(attn_mask.to(torch.bool), -1e8 if x.dtype == torch.float32 else -1e4)
        layer_input = x
        y = self.attend_self(self.self_attn_layer_norm.enter(x), encoder_padding_mask, attn_mask)
        x = self.self_attn_layer_norm.leave(x, y, layer_input, self.branch_dropout())
        y = self.ffn(self.final_layer_norm.enter(x))
        return self.final_layer_norm.leave(x, y, layer_input, self.branch_dropout())

    def attend_self(self, x: Tensor, padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor:
        """The self-attention branch."""
        if torch.jit.is_scripting():
            return self.self_attn(
                query=x, key=x, value=x, key_padding_mask=padding_mask, need_weights=False, attn_mask=attn_mask
            )[0]
        else:
            return attend(self.self_attn, self.compute_dtype, x, None, padding_mask, attn_mask)[0]


class DecoderLayer(Sublayers, TransformerDecoderLayerBase):
    """Self-attention, cross-attention and FFN, each with its LN where ``cfg.ln_position`` says (paper, Table 1).

    ``layer``: which one of its stack, from 1.
    """

    def __init__(self, cfg, layer, no_encoder_attn=False):
        super().__init__(cfg, no_encoder_attn)
        cross = () if no_encoder_attn else ("encoder_attn",)
        self.set_up(cfg, "decoder", layer, "self_attn", *cross, "ffn")

    def forward(
        self,
        x,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        prev_self_attn_state: list[Tensor] | None = None,
        prev_attn_state: list[Tensor] | None = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
    ):
        """One layer.

        ``x``: ``(tgt_len, batch, embed_dim)``; ``encoder_out``: ``(src_len, batch, embed_dim)``; masks as in
        :class:`EncoderLayer`, ``self_attn_mask`` being added to the scores. ``prev_self_attn_state`` and
        ``prev_attn_state`` (keys and values given by the caller) as in fairseq. Returns the shape of ``x``, the
        attention probabilities over the source (``(heads, batch, tgt_len, src_len)``, or their mean over heads) if
        asked for, and None.
        """
        layer_input = x
        if prev_self_attn_state is not None:
            assert incremental_state is not None, "keys and values of earlier words need an incremental state"
            self.self_attn._set_input_buffer(incremental_state, self.as_buffer(prev_self_attn_state))
        y = self.attend_self(self.self_attn_layer_norm.enter(x), self_attn_padding_mask, self_attn_mask, incremental_state)
        x = self.self_attn_layer_norm.leave(x, y, layer_input, self.branch_dropout())

        attn: Tensor | None = None
        if self.encoder_attn is not None and encoder_out is not None:
            need_weights = need_attn or need_head_weights
            if not torch.jit.is_scripting():
                # fairseq's layer gives them always outside training; who listens to it is to have them
                need_weights = need_weights or (self.need_attn and not self.training and fused.has_hooks(self))
            if prev_attn_state is not None:
                assert incremental_state is not None, "keys and values of the source need an incremental state"
                self.encoder_attn._set_input_buffer(incremental_state, self.as_buffer(prev_attn_state))
            y, attn = self.attend_source(
                self.encoder_attn_layer_norm.enter(x),
                encoder_out,
                encoder_padding_mask,
                incremental_state,
                need_weights,
            )
            if attn is not None and not need_head_weights:
                attn = attn.mean(dim=0)
            x = self.encoder_attn_layer_norm.leave(x, y, layer_input, self.branch_dropout())

        y = self.ffn(self.final_layer_norm.enter(x))
        return self.final_layer_norm.leave(x, y, layer_input, self.branch_dropout()), attn, None

    def attend_self(
        self,
        x: Tensor,
        padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None,
    ) -> Tensor:
        """The self-attention branch."""
        if torch.jit.is_scripting():
            return self.self_attn(
                query=x,
                key=x,
                value=x,
                key_padding_mask=padding_mask,
                incremental_state=incremental_state,
                need_weights=False,
                attn_mask=attn_mask,
            )[0]
        else:
            return attend(self.self_attn, self.compute_dtype, x, None, padding_mask, attn_mask, incremental_state)[0]

    def attend_source(
        self,
        x: Tensor,
        encoder_out: Tensor,
        padding_mask: Tensor | None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The cross-attention branch and, if asked for, its probabilities for each head."""
        assert self.encoder_attn is not None
        if torch.jit.is_scripting():
            return self.encoder_attn(
                query=x,
                key=encoder_out,
                value=encoder_out,
                key_padding_mask=padding_mask,
                incremental_state=incremental_state,
                static_kv=True,
                need_weights=need_weights,
                need_head_weights=need_weights,
            )
        else:
            return attend(
                self.encoder_attn,
                self.compute_dtype,
                x,
                encoder_out,
                padding_mask,
                incremental_state=incremental_state,
                need_weights=need_weights,
            )

    def as_buffer(self, state: list[Tensor]) -> dict[str, Tensor | None]:
        """Given keys, values and (optionally) their padding mask as fairseq's attention keeps them."""
        saved: dict[str, Tensor | None] = {"prev_key": state[0], "prev_value": state[1]}
        if len(state) >= 3:
            saved["prev_key_padding_mask"] = state[2]
        return saved
