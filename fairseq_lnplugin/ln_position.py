"""WHERE THE LAYER NORMALIZATION SITS: one small class an arrangement, its equation in the docstring.

A sub-layer (self-attention, cross-attention or FFN) with branch f is run as ``x = norm.leave(x, f(norm.enter(x)),
...)``, where ``norm`` is an instance of one of these classes. It *is* the sub-layer's LN, so its parameters keep
fairseq's names (``self_attn_layer_norm.weight``, ...) and whatever an arrangement needs beside them (a trained vector,
a second LN) is a parameter of its own. Sources: Xiong et al. 2020, Table 1 and Figure 1.

What else an arrangement may need is there: :class:`Place` (DeepNorm's factors depend on the depth, B2T on the
sub-layer, a mixture on the layer), ``layer_input`` (B2T), a stream wider than the branch's input (ResiDual packs two
side by side) and a final norm of its own. tests/test_ln_position.py builds these.
"""

from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from fairseq_lnplugin import fused


class Place(NamedTuple):
    """Which sub-layer of which model a norm belongs to."""

    stack: str  # "encoder" or "decoder"
    layer: int  # from 1, as in the paper
    sublayer: str  # "self_attn", "encoder_attn" or "ffn"; the FFN is every layer's last
    encoder_layers: int
    decoder_layers: int
    embed_dim: int
    compute_dtype: torch.dtype


class SublayerNorm(nn.LayerNorm):
    """The LN of one sub-layer, and the place where it sits.

    Shapes: every tensor is ``(len, batch, embed_dim)``. A subclass gives ``enter`` (what the branch reads) and
    ``leave`` (the stream after the branch) and says with ``final_norm`` which module of ``embed_dim``, if any, each
    stack ends in. ``compute_dtype`` is the type of the branch's products; the stream stays in float32.
    """

    final_norm: type[nn.Module] | None = None
    equation = ""

    def __init__(self, place: Place):
        super().__init__(place.embed_dim)
        self.compute_dtype = place.compute_dtype

    def enter(self, x: Tensor) -> Tensor:
        """What the branch reads, given the stream ``x``."""
        raise NotImplementedError

    def leave(self, x: Tensor, y: Tensor, layer_input: Tensor, dropout: float) -> Tensor:
        """The stream after the sub-layer.

        ``x``: the stream before it; ``y``: the branch's output; ``layer_input``: the stream as it entered the layer
        (for arrangements that skip more than one sub-layer); ``dropout``: the rate on ``y``, 0 when not training.
        """
        raise NotImplementedError

    def normalize(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """LN(x): for the stream in its own type, for a branch in ``compute_dtype``."""
        if torch.jit.is_scripting():
            return fused.layer_norm(x, self.weight, self.bias, self.eps, dtype)
        else:
            if not fused.is_plain(self, nn.LayerNorm):
                return self(x).to(fused.compute_dtype_of(self.weight, dtype))
            return fused.layer_norm(x, self.weight, self.bias, self.eps, dtype)

    def extra_repr(self):
        """The arrangement's equation, so that a printed model shows where its norms sit."""
        return f"{super().extra_repr()}, {self.equation}"


class PostLN(SublayerNorm):
    """Post-LN, the original Transformer: ``x = LN(x + dropout(f(x)))``."""

    equation = "x = LN(x + f(x))"

    def enter(self, x: Tensor) -> Tensor:
        """The stream ``x`` as it is: it is normalized already."""
        return x

    def leave(self, x: Tensor, y: Tensor, layer_input: Tensor, dropout: float) -> Tensor:
        """``LN(x + dropout(y))``."""
        return self.normalize(fused.dropout_add(x, y, dropout), x.dtype)


class PreLN(SublayerNorm):
    """Pre-LN: ``x = x + dropout(f(LN(x)))``, and one more LN after each stack, right before the prediction."""

    final_norm = nn.LayerNorm
    equation = "x = x + f(LN(x))"

    def enter(self, x: Tensor) -> Tensor:
        """``LN(x)``."""
        return self.normalize(x, self.compute_dtype)

    def leave(self, x: Tensor, y: Tensor, layer_input: Tensor, dropout: float) -> Tensor:
        """``x + dropout(y)``: the identity path meets no norm."""
        return fused.dropout_add(x, y, dropout)


#: The choices of ``--ln-position``.
LN_POSITIONS = {"post": PostLN, "pre": PreLN}
