"""The masked-LM encoder ``bert_ln_study`` of figure 5, its named sizes and its flags, for ``masked_lm`` and fine-tuning.

fairseq's ``roberta`` over the encoder of :mod:`~fairseq_lnplugin.transformer_ln_study`: the same layers, arrangements and
flags as the translation model. Learned positions, the LM head (at masked positions only), classification heads and the
names in the state dict are RoBERTa's, so that its checkpoints load here and the other way round.

Where an LN sits beside the layers' own:

* *On the embeddings* in Post-LN only. The original (Devlin et al. 2018, and RoBERTa) has it there, and Table 1 of Xiong et al.
  2020 lets Pre-LN's first LN be that of the first branch, on the embeddings as they are: an LN on them would normalize the
  identity path, which Pre-LN leaves alone from the embeddings to the final LN. GPT-2, Megatron-LM and fairseq's
  ``roberta_prenorm`` do the same; with the last, Pre-LN here shares its state dict. (``--encoder-normalize-before`` of
  fairseq's older ``bert_base`` is an LN on the embeddings and nothing else.)
* *After the last layer* in Pre-LN only (Table 1: "right before the prediction").
* *In the LM head*, between its two products, in both, as in BERT.

Weights start as BERT's did: N(0, 0.02^2), zero biases. That is ``--weight-init fairseq``, since fairseq's RoBERTa does it;
here it is the default, and the other schemes change the layers only.
"""

from fairseq.models import register_model, register_model_architecture
from fairseq.models.roberta import RobertaEncoder, RobertaLMHead, RobertaModel
from fairseq.models.roberta.model import base_architecture
from fairseq.models.transformer import TransformerConfig
from fairseq.modules.transformer_sentence_encoder import init_bert_params

from fairseq_lnplugin import fused
from fairseq_lnplugin.ln_position import LN_POSITIONS
from fairseq_lnplugin.transformer_ln_study import (
    Encoder,
    LNStudyModel,
    add_ln_study_args,
    as_namespace,
    check_sizes,
    fill_ln_study_args,
    fill_sizes,
)
from fairseq_lnplugin.weight_init import WEIGHT_INITS

STACKS = ("encoder",)
WEIGHT_INIT = "fairseq"


class LMHead(RobertaLMHead):
    """RoBERTa's head, ``LN(GELU(x W + b)) E^T + c`` with E the word embeddings, its products in the compute dtype."""

    def __init__(self, embed_dim, output_dim, activation_fn, weight, compute_dtype):
        super().__init__(embed_dim, output_dim, activation_fn, weight)
        self.compute_dtype = compute_dtype

    def forward(self, features, masked_tokens=None, **unused):
        """Logits ``(masked, vocab)`` at the positions where ``masked_tokens (batch, len)`` is true.

        Without it ``(batch, len, vocab)``. ``features``: ``(batch, len, embed_dim)``.
        """
        if masked_tokens is not None:
            features = features[masked_tokens]
        x = self.activation_fn(fused.linear(features, self.compute_dtype, self.dense))
        x = self.layer_norm(x.to(features.dtype))
        return fused.product(x, self.compute_dtype, [self.weight], [self.bias]).to(features.dtype)


class BertEncoder(RobertaEncoder):
    """RoBERTa's encoder over our stack: ``sentence_encoder`` is an :class:`~transformer_ln_study.Encoder`."""

    def build_encoder(self, args, dictionary, embed_tokens):
        """Fairseq's factory."""
        cfg = TransformerConfig.from_namespace(args)
        cfg.decoder.layers = 0  # what an arrangement that asks for the depths is to know
        encoder = Encoder(cfg, dictionary, embed_tokens)
        # RobertaModel does so again; with both, a seed gives the weights that fairseq's own roberta has
        return encoder.apply(init_bert_params)

    def build_lm_head(self, embed_dim, output_dim, activation_fn, weight):
        """Fairseq's factory."""
        return LMHead(embed_dim, output_dim, activation_fn, weight, fused.COMPUTE_DTYPES[self.args.compute_dtype])


@register_model("bert_ln_study")
class BertLNStudyModel(LNStudyModel, RobertaModel):
    """Masked-LM encoder with a choice of LN position (Xiong et al. 2020, section 4.1)."""

    def __init__(self, args, encoder):
        super().__init__(args, encoder)
        layers = encoder.sentence_encoder.layers
        for number in range(len(layers)):  # by number: iterating is what drops layers under --encoder-layerdrop
            WEIGHT_INITS[args.weight_init](layers[number])  # BERT's start, just made, is every module's

    @staticmethod
    def add_args(parser):
        """Fairseq's flags of ``roberta`` and ours."""
        RobertaModel.add_args(parser)
        add_ln_study_args(parser, WEIGHT_INIT)

    @classmethod
    def build_model(cls, args, task):
        """Fairseq's factory; says in the log what was built."""
        args = as_namespace(args)
        if getattr(args, "max_positions", None) is None:
            args.max_positions = task.max_positions()
        model = cls(args, BertEncoder(args, task.source_dictionary))
        model.log_what_was_built(args)
        return model

    def stacks(self):
        """The one encoder."""
        return {"encoder.sentence_encoder": self.encoder.sentence_encoder}

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """As fairseq's.

        Raises:
            SystemExit: as in :class:`~transformer_ln_study.LNStudyModel`; the checkpoint has other --max-positions.

        """
        table = self.encoder.sentence_encoder.embed_positions
        theirs = state_dict.get("encoder.sentence_encoder.embed_positions.weight")
        if theirs is not None and len(theirs) != len(table.weight):
            trained = table.max_positions + len(theirs) - len(table.weight)
            raise SystemExit(
                f"the checkpoint's encoder knows {trained} positions and this model {table.max_positions}: give "
                f"--max-positions {trained}"
            )
        return super().load_state_dict(state_dict, strict, model_cfg, args)


def bert_sizes(args, embed_dim, ffn_embed_dim, heads, layers):
    """Fill in all that no flag gave: our flags, the sizes and RoBERTa's own defaults.

    Raises:
        SystemExit: as for the translation model; an LN on the embeddings asked for in Pre-LN.

    """
    fill_ln_study_args(args, STACKS, WEIGHT_INIT)
    on_embeddings = LN_POSITIONS[args.ln_position].final_norm is None
    if getattr(args, "layernorm_embedding", False) and not on_embeddings:
        raise SystemExit(
            f"--layernorm-embedding contradicts --ln-position {args.ln_position}, whose first LN is that of the first "
            "branch; leave it out"
        )
    args.layernorm_embedding = on_embeddings
    fill_sizes(args, embed_dim, ffn_embed_dim, heads, layers, STACKS)
    base_architecture(args)
    check_sizes(args, STACKS)


@register_model_architecture("bert_ln_study", "bert_ln_study")
@register_model_architecture("bert_ln_study", "bert_ln_study_base")
def bert_ln_study(args):
    """The paper's size, BERT base: 12 layers, 768 / 3072, 12 heads."""
    bert_sizes(args, 768, 3072, 12, 12)


@register_model_architecture("bert_ln_study", "bert_ln_study_small")
def bert_ln_study_small(args):
    """The ``cpu`` preset of the recipes: 6 layers, 256 / 1024, 4 heads."""
    bert_sizes(args, 256, 1024, 4, 6)


@register_model_architecture("bert_ln_study", "bert_ln_study_tiny")
def bert_ln_study_tiny(args):
    """For tests: 2 layers, 64 / 256, 2 heads."""
    bert_sizes(args, 64, 256, 2, 2)
