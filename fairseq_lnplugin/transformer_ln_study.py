"""The encoder-decoder model ``transformer_ln_study``, its named sizes and its flags.

fairseq's ``transformer`` with layers whose LN sits where ``--ln-position`` says; all else (embeddings, incremental state, beam
search, sharing, LayerDrop, activation checkpointing, FSDP wrapping) is fairseq's, by subclassing. The *legacy* registration is on
purpose: with a dataclass fairseq-train ignores the named sizes.
"""

import logging

from fairseq.distributed import fsdp_wrap
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import (
    TransformerConfig,
    TransformerDecoderBase,
    TransformerEncoderBase,
    TransformerModel,
    base_architecture,
)
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor

from fairseq_lnplugin import compat
from fairseq_lnplugin.fused import COMPUTE_DTYPES
from fairseq_lnplugin.layers import DecoderLayer, EncoderLayer
from fairseq_lnplugin.ln_position import LN_POSITIONS
from fairseq_lnplugin.weight_init import WEIGHT_INITS

logger = logging.getLogger(__name__)

#: Flags of fairseq's transformer that change what a layer is; each would silently do nothing in our layers.
UNSUPPORTED = ("cross_self_attention", "quant_noise_pq", "quant_noise_scalar", "encoder_xformers_att_config",
               "decoder_xformers_att_config", "scale_attn", "scale_fc", "scale_heads", "scale_resids", "base_layers")  # fmt: skip


def wrapped(layer, cfg):
    """The layer under activation checkpointing and FSDP, as the flags say (fairseq wraps its own layers so)."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


class Encoder(TransformerEncoderBase):
    """fairseq's encoder over :class:`~fairseq_lnplugin.layers.EncoderLayer`."""

    def build_encoder_layer(self, cfg):
        """Fairseq's factory."""
        return wrapped(EncoderLayer(cfg), cfg)


class Decoder(TransformerDecoderBase):
    """fairseq's decoder over :class:`~fairseq_lnplugin.layers.DecoderLayer`."""

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        """Fairseq's factory."""
        return wrapped(DecoderLayer(cfg, no_encoder_attn), cfg)

    def extract_features(
        self,
        prev_output_tokens,
        encoder_out: dict[str, list[Tensor]] | None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ):
        """As fairseq's, but attention probabilities are made in training only where ``alignment_layer`` asks for them."""
        if self.training and alignment_layer is None:
            alignment_layer = -1  # no layer has this index
        return self.extract_features_scriptable(
            prev_output_tokens,
            encoder_out,
            incremental_state,
            full_context_alignment,
            alignment_layer,
            alignment_heads,
        )


@register_model("transformer_ln_study")
class TransformerLNStudyModel(TransformerModel):
    """Encoder-decoder Transformer with a choice of LN position (Xiong et al. 2020, Table 1)."""

    @classmethod
    def add_args(cls, parser):
        """Fairseq's flags of ``transformer`` and ours."""
        super().add_args(parser)
        add_ln_study_args(parser)

    @classmethod
    def build_model(cls, args, task):
        """Fairseq's factory; says in the log what was built.

        Raises:
            SystemExit: shared embeddings asked for with two dictionaries.

        """
        if getattr(args, "share_all_embeddings", False) and task.source_dictionary != task.target_dictionary:
            raise SystemExit(
                "--share-all-embeddings needs one dictionary for both languages, and the data folder has two that differ; "
                "run fairseq-preprocess with --joined-dictionary, or leave --share-all-embeddings out"
            )
        model = super().build_model(args, task)
        model.log_what_was_built()
        return model

    @classmethod
    def build_encoder(cls, args, src_dict, embed_tokens):
        """Fairseq's factory."""
        return Encoder(TransformerConfig.from_namespace(args), src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        """Fairseq's factory."""
        cfg = TransformerConfig.from_namespace(args)
        return Decoder(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)

    def log_what_was_built(self):
        """One line: position, norms per layer, final norms, init, compute dtype, parameters."""
        norms = [sum(isinstance(module, LN_POSITIONS[self.cfg.ln_position]) for module in layer.modules())
                 for layer in (self.encoder.layers[0], self.decoder.layers[0])]  # fmt: skip
        logger.info(
            "%s-LN: %d norms an encoder layer, %d a decoder layer, final norms: encoder %s, decoder %s; %d-%d layers; "
            "weight init %s; compute dtype %s; %s parameters",
            self.cfg.ln_position.capitalize(),
            *norms,
            "yes" if self.encoder.layer_norm is not None else "no",
            "yes" if self.decoder.layer_norm is not None else "no",
            self.encoder.num_layers,
            self.decoder.num_layers,
            self.cfg.weight_init,
            self.cfg.compute_dtype,
            f"{sum(parameter.numel() for parameter in self.parameters()):,}",
        )


def add_ln_study_args(parser):
    """The flags of every model of this plug-in. No defaults here: the named sizes fill them in, and a flag wins."""
    parser.add_argument("--ln-position", choices=sorted(LN_POSITIONS), help="where the layer normalization sits (default: post)")
    parser.add_argument("--weight-init", choices=sorted(WEIGHT_INITS), help="how the weights start (default: xavier_uniform)")
    parser.add_argument(
        "--compute-dtype", choices=sorted(COMPUTE_DTYPES), help="type of the matrix products; all else is float32 (default: float32)"
    )
    parser.add_argument(
        "--grad-norm-interval",
        type=int,
        metavar="N",
        help="write each matrix's gradient norm to SAVE_DIR/grad_norm.tsv at update 1 and each N-th (default: 0, never)",
    )


def fill_ln_study_args(args):
    """Defaults of our flags, and fairseq's own LN flags set to agree with ``--ln-position``.

    Raises:
        SystemExit: a flag contradicts ``--ln-position``, or would do nothing in our layers.

    """
    args.ln_position = getattr(args, "ln_position", None) or "post"
    args.weight_init = getattr(args, "weight_init", None) or "xavier_uniform"
    args.compute_dtype = getattr(args, "compute_dtype", None) or "float32"
    args.grad_norm_interval = getattr(args, "grad_norm_interval", None) or 0
    final_norm = LN_POSITIONS[args.ln_position].final_norm
    for flag in ("encoder_normalize_before", "decoder_normalize_before"):
        if getattr(args, flag, False) and not final_norm:
            raise SystemExit(f"{as_flag(flag)} contradicts --ln-position {args.ln_position}, which sets both stacks; leave it out")
        setattr(args, flag, final_norm)
    if final_norm and getattr(args, "no_decoder_final_norm", False):
        raise SystemExit(
            f"--no-decoder-final-norm contradicts --ln-position {args.ln_position}, which ends each stack in an LN; leave it out"
        )
    for flag in UNSUPPORTED:
        if getattr(args, flag, None):
            raise SystemExit(f"{as_flag(flag)} does nothing in {args.arch}; use fairseq's own transformer for it, or leave it out")
    compat.without_tpu(args)


def as_flag(name):
    """``encoder_layers`` as it is typed."""
    return "--" + name.replace("_", "-")


def sizes(args, embed_dim, ffn_embed_dim, heads, layers):
    """Fill in the sizes that no flag gave, the same for both stacks, then all else as the model needs it."""
    fill_ln_study_args(args)
    for stack in ("encoder", "decoder"):
        for name, value in (("embed_dim", embed_dim), ("ffn_embed_dim", ffn_embed_dim), ("attention_heads", heads), ("layers", layers)):
            if getattr(args, f"{stack}_{name}", None) is None:
                setattr(args, f"{stack}_{name}", value)
    base_architecture(args)


@register_model_architecture("transformer_ln_study", "transformer_ln_study")
def transformer_ln_study(args):
    """Base size (Vaswani et al. 2017): 6-6 layers, 512 / 2048, 8 heads, dropout 0.1."""
    sizes(args, 512, 2048, 8, 6)


@register_model_architecture("transformer_ln_study", "transformer_ln_study_iwslt_de_en")
def transformer_ln_study_iwslt_de_en(args):
    """The paper's IWSLT14 size (appendix A.1): 6-6 layers, 512 / 1024, 4 heads."""
    sizes(args, 512, 1024, 4, 6)


@register_model_architecture("transformer_ln_study", "transformer_ln_study_wmt_en_de")
def transformer_ln_study_wmt_en_de(args):
    """The paper's WMT14 size (appendix A.1): base, one embedding for source, target and output (37K joint BPE)."""
    args.share_all_embeddings = getattr(args, "share_all_embeddings", True)
    sizes(args, 512, 2048, 8, 6)


@register_model_architecture("transformer_ln_study", "transformer_ln_study_small")
def transformer_ln_study_small(args):
    """The ``cpu`` preset of the recipes: 6-6 layers, 256 / 512, 4 heads."""
    sizes(args, 256, 512, 4, 6)


@register_model_architecture("transformer_ln_study", "transformer_ln_study_tiny")
def transformer_ln_study_tiny(args):
    """For tests: 2-2 layers, 64 / 128, 2 heads."""
    sizes(args, 64, 128, 2, 2)
