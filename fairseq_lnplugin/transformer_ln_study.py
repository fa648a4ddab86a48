"""The encoder-decoder model ``transformer_ln_study``, its named sizes and its flags.

fairseq's ``transformer`` with layers whose LN sits where ``--ln-position`` says; all else (embeddings, sharing, LayerDrop,
activation checkpointing, FSDP wrapping) is fairseq's, by subclassing, but for the fast path (attention.py, beam_search.py). The
*legacy* registration is on purpose: with a dataclass fairseq-train ignores the named sizes.
"""

import hashlib
import logging
import textwrap
from argparse import Namespace

import torch
import torch.nn as nn
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
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fairseq_lnplugin import compat, fused
from fairseq_lnplugin.fused import COMPUTE_DTYPES
from fairseq_lnplugin.layers import DecoderLayer, Dropout, EncoderLayer
from fairseq_lnplugin.ln_position import LN_POSITIONS
from fairseq_lnplugin.weight_init import WEIGHT_INITS

logger = logging.getLogger(__name__)

#: Flags of fairseq's transformer that change what a layer is; each would silently do nothing in our layers.
UNSUPPORTED = ("cross_self_attention", "quant_noise_pq", "quant_noise_scalar", "encoder_xformers_att_config",
               "decoder_xformers_att_config", "scale_attn", "scale_fc", "scale_heads", "scale_resids",
               "base_layers")  # fmt: skip

STACKS = ("encoder", "decoder")

#: Flags that are probabilities, of any of our models.
RATES = ("dropout", "attention_dropout", "activation_dropout", "pooler_dropout", "encoder_layerdrop",
         "decoder_layerdrop")  # fmt: skip


def wrapped(layer, cfg):
    """The layer under activation checkpointing and FSDP, as the flags say (fairseq wraps its own layers so)."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


def fingerprint(dictionary):
    """A hash of a dictionary's types and their order."""
    return hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()


class Stack:
    """What encoder and decoder share: numbered layers, the arrangement's norm at the end, dropout of the embeddings.

    ``stock_name``: of fairseq's own class, which the flag ``--retain-dropout-modules`` knows.
    """

    def __init__(self, cfg, *args, **kwargs):
        self.layers_built = 0
        super().__init__(cfg, *args, **kwargs)
        self.dropout_module = Dropout.in_place_of(self.dropout_module, self.stock_name)
        if self.layer_norm is not None:  # fairseq's own: the arrangement's takes its place
            self.layer_norm = LN_POSITIONS[cfg.ln_position].final_norm(self.layer_norm.normalized_shape[-1])

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        # in torch's own place for what a state is besides tensors: checkpoints keep it and stock fairseq does not look at it
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["types"] = fingerprint(self.dictionary)

    def next_layer(self, layer_class, cfg, *args):
        """The layer of fairseq's next call of its factory; layers count from 1."""
        self.layers_built += 1
        return wrapped(layer_class(cfg, self.layers_built, *args), cfg)


class Encoder(Stack, TransformerEncoderBase):
    """fairseq's encoder over :class:`~fairseq_lnplugin.layers.EncoderLayer`."""

    stock_name = "TransformerEncoder"

    def build_encoder_layer(self, cfg):
        """Fairseq's factory."""
        return self.next_layer(EncoderLayer, cfg)

    reorder_with_copies = TransformerEncoderBase.reorder_encoder_out  # TorchScript knows no super()

    @torch.jit.export
    def reorder_encoder_out(self, encoder_out: dict[str, list[Tensor]], new_order: Tensor):
        """As fairseq's, without a copy where equal rows change places: the beams of a sentence do so at most words.

        The dict gets an entry ``rows``, which tells of each row whose copy it is.
        """
        if "rows" in encoder_out:
            rows = encoder_out["rows"][0]
        else:
            rows = torch.arange(encoder_out["encoder_out"][0].size(1), device=new_order.device)
        reordered = rows.index_select(0, new_order)
        if torch.equal(reordered, rows):
            return encoder_out
        copies = self.reorder_with_copies(encoder_out, new_order)
        copies["rows"] = [reordered]
        return copies


class Decoder(Stack, TransformerDecoderBase):
    """fairseq's decoder over :class:`~fairseq_lnplugin.layers.DecoderLayer`."""

    stock_name = "TransformerDecoder"

    def __init__(self, cfg, dictionary, embed_tokens, no_encoder_attn=False):
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn)
        self.compute_dtype = COMPUTE_DTYPES[cfg.compute_dtype]
        self.keeps_attention = False

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        """Fairseq's factory."""
        return self.next_layer(DecoderLayer, cfg, no_encoder_attn)

    def extract_features(
        self,
        prev_output_tokens,
        encoder_out: dict[str, list[Tensor]] | None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ):
        """As fairseq's, but training makes attention probabilities only where they are asked for.

        That is by ``alignment_layer``, or by ``--load-alignments``, whose criterion asks for those of the last layer. In training
        the second result also holds ``output_weight``, for a criterion that multiplies by it: that torch's
        DistributedDataParallel finds it in use, it has to leave the model by its forward.
        """
        if self.training and alignment_layer is None and not self.keeps_attention:
            alignment_layer = -1  # no layer has this index
        x, extra = self.extract_features_scriptable(
            prev_output_tokens,
            encoder_out,
            incremental_state,
            full_context_alignment,
            alignment_layer,
            alignment_heads,
        )
        if not torch.jit.is_scripting():
            if self.training and self.adaptive_softmax is None:
                extra["output_weight"] = [self.output_projection.weight.view_as(self.output_projection.weight)]
        return x, extra

    def set_beam_size(self, beam_size):
        """Fairseq's own: nothing to do, for beams of one sentence share keys and values here in any case."""

    def output_layer(self, features: Tensor):
        """Logits ``(batch, tgt_len, vocab)`` of ``(batch, tgt_len, embed_dim)``, their product in the compute dtype."""
        if self.adaptive_softmax is not None:
            return features  # fairseq's criterion and search call the adaptive softmax themselves
        if torch.jit.is_scripting():
            return self.output_projection(features)
        else:
            return fused.linear(features, self.compute_dtype, self.output_projection).to(features.dtype)


class LNStudyModel:
    """What the models of this plug-in share: why a checkpoint is refused, and what the log says.

    A subclass gives :meth:`stacks`.
    """

    def stacks(self):
        """The stacks by their names in the state dict, the encoder first."""
        raise NotImplementedError

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """As fairseq's.

        Raises:
            SystemExit: the checkpoint is of another LN position, of other dictionaries or of another size.

        """
        for prefix, stack in self.stacks().items():
            self.refuse_other_position(prefix, stack, state_dict)
            self.refuse_other_dictionary(prefix, stack, state_dict)
            if f"{prefix}.layer_norm.weight" in state_dict:
                # fairseq's exponential moving average leaves versions out, and without one its stacks drop their final norm
                state_dict.setdefault(f"{prefix}.version", stack.version.clone())
        try:
            return super().load_state_dict(state_dict, strict, model_cfg, args)
        except RuntimeError as error:  # torch lists every difference, one a line, below a title
            first = str(error).partition("\n")[2].partition("\n")[0] or str(error)
            first = textwrap.shorten(first, 160, placeholder=" ...")
            raise SystemExit(f"the checkpoint does not fit this model's flags: {first}") from None

    def refuse_other_position(self, prefix, stack, state_dict):
        """Compare the final norm of a stack with that in a checkpoint; that it is missing tells only beside all of the rest."""
        ends_in_norm = f"{prefix}.layer_norm.weight" in state_dict
        rest = (name for name, _ in stack.named_parameters() if not name.startswith("layer_norm."))
        tells = ends_in_norm or all(f"{prefix}.{name}" in state_dict for name in rest)
        if tells and ends_in_norm != (stack.layer_norm is not None):
            raise SystemExit(
                f"the checkpoint's {short(prefix)} ends in {'an LN (Pre-LN)' if ends_in_norm else 'no LN (Post-LN)'} and this "
                f"model is --ln-position {stack.cfg.ln_position}: give the position that the checkpoint was trained "
                "with, or another --save-dir"
            )

    def refuse_other_dictionary(self, prefix, stack, state_dict):
        """Compare a stack's dictionary with that of a checkpoint: its size, and its types where the checkpoint tells of them."""
        table = state_dict.get(f"{prefix}.embed_tokens.weight")
        trained = getattr(state_dict, "_metadata", {}).get(prefix, {}).get("types")
        if table is not None and len(table) != stack.embed_tokens.num_embeddings:
            difference = f"knows {len(table)} types and the data folder's dictionary has {len(stack.dictionary)}"
        elif trained is not None and trained != fingerprint(stack.dictionary):
            difference = "knows other types, or the same in another order, than the data folder's dictionary has"
        else:
            return
        raise SystemExit(
            f"the checkpoint's {short(prefix)} {difference}: binarize with the dictionaries of its training "
            "(fairseq-preprocess --srcdict, --tgtdict)"
        )

    def log_what_was_built(self, args):
        """One line: position, norms, layers, init, compute dtype, parameters, kernels."""
        stacks = {short(prefix): stack for prefix, stack in self.stacks().items()}

        def of_each(value):
            return ", ".join(f"{name} {value(stack)}" for name, stack in stacks.items())

        logger.info(
            "%s-LN: norms a layer: %s; final norms: %s; norms on embeddings: %s; layers: %s; weight init %s; "
            "compute dtype %s; %s parameters; C++ kernels: %s",
            args.ln_position.capitalize(),
            of_each(lambda stack: sum(isinstance(module, nn.LayerNorm) for module in stack.layers[0].modules())),
            of_each(lambda stack: "no" if stack.layer_norm is None else "yes"),
            of_each(lambda stack: "no" if stack.layernorm_embedding is None else "yes"),
            of_each(lambda stack: stack.num_layers),
            args.weight_init,
            args.compute_dtype,
            f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            f"no ({fused.why_no_kernels})" if fused.kernels is None else "yes",
        )


def short(prefix):
    """A stack's name in the state dict as a reader knows it: ``encoder``, ``decoder``."""
    return prefix.partition(".")[0]


def as_namespace(args):
    """The model's settings, which fairseq-hydra-train gives in a form where fairseq's configs would lose our flags."""
    return Namespace(**OmegaConf.to_container(args)) if isinstance(args, DictConfig) else args


@register_model("transformer_ln_study")
class TransformerLNStudyModel(LNStudyModel, TransformerModel):
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
            SystemExit: one embedding for two dictionaries asked for.

        """
        args = as_namespace(args)
        if getattr(args, "share_all_embeddings", False) and task.source_dictionary != task.target_dictionary:
            raise SystemExit(
                "one embedding for source, target and output (--share-all-embeddings, which "
                "transformer_ln_study_wmt_en_de sets) needs one dictionary, and the data folder has two that differ; "
                "run fairseq-preprocess with --joined-dictionary, or leave the flag out and take another named size"
            )
        model = super().build_model(args, task)
        settings = getattr(task, "cfg", None) or getattr(task, "args", None)  # of older tasks
        model.decoder.keeps_attention = bool(getattr(settings, "load_alignments", False))
        model.log_what_was_built(args)
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

    def stacks(self):
        """Encoder and decoder."""
        return {"encoder": self.encoder, "decoder": self.decoder}


def add_ln_study_args(parser, weight_init="xavier_uniform"):
    """The flags of every model of this plug-in. No defaults here: the named sizes fill them in, and a flag wins.

    ``weight_init``: the model's default.
    """
    parser.add_argument("--ln-position", choices=sorted(LN_POSITIONS), help="where the layer normalization sits (default: post)")
    parser.add_argument("--weight-init", choices=sorted(WEIGHT_INITS), help=f"how the weights start (default: {weight_init})")
    parser.add_argument(
        "--compute-dtype",
        choices=sorted(COMPUTE_DTYPES),
        help="type of the matrix products; all else is float32 (default: float32)",
    )
    parser.add_argument(
        "--grad-norm-interval",
        type=int,
        metavar="N",
        help="write each parameter's gradient norm to SAVE_DIR/grad_norm.tsv at update 1 and every N (default: 0: never)",
    )


def fill_ln_study_args(args, stacks=STACKS, weight_init="xavier_uniform"):
    """Defaults of our flags, and fairseq's own LN flags set to agree with ``--ln-position``.

    ``stacks``: of the model; ``weight_init``: its default.

    Raises:
        SystemExit: a choice is unknown; a flag contradicts another, or would do nothing in our layers.

    """
    args.ln_position = getattr(args, "ln_position", None) or "post"
    args.weight_init = getattr(args, "weight_init", None) or weight_init
    args.compute_dtype = getattr(args, "compute_dtype", None) or "float32"
    args.grad_norm_interval = getattr(args, "grad_norm_interval", None) or 0
    known = {"ln_position": LN_POSITIONS, "weight_init": WEIGHT_INITS, "compute_dtype": COMPUTE_DTYPES}
    for flag, choices in known.items():
        value = getattr(args, flag)
        if value not in choices:  # the command line is checked by its parser, a YAML file and --model-overrides are not
            raise SystemExit(f"{as_flag(flag)} {value}: no such choice; take one of {', '.join(sorted(choices))}")
    ends_in_norm = LN_POSITIONS[args.ln_position].final_norm is not None
    for flag in (f"{stack}_normalize_before" for stack in stacks):
        if getattr(args, flag, False) and not ends_in_norm:
            raise SystemExit(
                f"{as_flag(flag)} contradicts --ln-position {args.ln_position}, which sets every stack; leave it out"
            )
        setattr(args, flag, ends_in_norm)
    if ends_in_norm and getattr(args, "no_decoder_final_norm", False):
        raise SystemExit(
            f"--no-decoder-final-norm contradicts --ln-position {args.ln_position}, which ends each stack in an LN; leave it out"
        )
    for flag in UNSUPPORTED:
        if getattr(args, flag, None):
            raise SystemExit(f"{as_flag(flag)} does nothing in this model; use fairseq's own transformer for it, or leave it out")
    # of a command line; a checkpoint's settings, which have a _name, hold all flags of its training, whatever is done with it
    for flag in () if hasattr(args, "_name") else ("fp16", "bf16", "amp"):
        if args.compute_dtype != "float32" and getattr(args, flag, False):
            raise SystemExit(
                f"--{flag} sets the type of every product, so --compute-dtype {args.compute_dtype} would do nothing; "
                "leave one out"
            )
    criterion = getattr(args, "criterion", "adaptive_loss")  # fairseq-hydra-train does not tell the model
    if getattr(args, "adaptive_softmax_cutoff", None) and criterion != "adaptive_loss":
        raise SystemExit(f"--adaptive-softmax-cutoff needs --criterion adaptive_loss, not {criterion}; change one of the two")
    compat.without_tpu(args)


def as_flag(name):
    """``encoder_layers`` as it is typed."""
    return "--" + name.replace("_", "-")


def sizes(args, embed_dim, ffn_embed_dim, heads, layers):
    """Fill in all that no flag gave: our flags, the sizes, the same for both stacks, and fairseq's own defaults.

    Raises:
        SystemExit: as :func:`fill_ln_study_args` and :func:`check_sizes`; one table of two widths asked for.

    """
    fill_ln_study_args(args)
    fill_sizes(args, embed_dim, ffn_embed_dim, heads, layers)
    base_architecture(args)
    check_sizes(args)
    if args.share_all_embeddings and args.encoder_embed_dim != args.decoder_embed_dim:
        raise SystemExit(
            f"--share-all-embeddings needs one width, and --encoder-embed-dim is {args.encoder_embed_dim}, "
            f"--decoder-embed-dim {args.decoder_embed_dim}; give both the same"
        )


def fill_sizes(args, embed_dim, ffn_embed_dim, heads, layers, stacks=STACKS):
    """Fill in the sizes that no flag gave, the same for each stack."""
    named = {"embed_dim": embed_dim, "ffn_embed_dim": ffn_embed_dim, "attention_heads": heads, "layers": layers}
    for stack in stacks:
        for name, value in named.items():
            if getattr(args, f"{stack}_{name}", None) is None:
                setattr(args, f"{stack}_{name}", value)


def check_sizes(args, stacks=STACKS):
    """Refuse sizes that no model can have.

    Raises:
        SystemExit: a size below 1, heads that do not divide the width, a rate outside [0, 1).

    """
    for stack in stacks:
        for name in ("embed_dim", "ffn_embed_dim", "attention_heads", "layers"):
            flag, value = f"{stack}_{name}", getattr(args, f"{stack}_{name}")
            if value < 1:
                raise SystemExit(f"{as_flag(flag)} {value}: give 1 or more")
        width, heads = getattr(args, f"{stack}_embed_dim"), getattr(args, f"{stack}_attention_heads")
        if width % heads:
            raise SystemExit(
                f"--{stack}-attention-heads {heads} does not divide --{stack}-embed-dim {width}; choose a divisor of it"
            )
    for flag in RATES:
        if not 0 <= getattr(args, flag, 0) < 1:
            raise SystemExit(f"{as_flag(flag)} {getattr(args, flag)}: give a rate from 0 to below 1")


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
