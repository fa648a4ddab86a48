"""fairseq's label smoothed cross entropy without the matrix of all logits: value, gradients and logging are the same.

For a target y and logits z over V types, with ``e`` the smoothing and ``s = e / (V - 1)`` (fairseq spreads e over
V - 1): ``loss = -(1 - e - s) log p(y) - s sum_v log p(v)``. Value and gradient are worked out a block of rows at a time
in the forward pass, at rows with a target only (no pads).
"""

import inspect

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.models.transformer import TransformerDecoderBase

from fairseq_lnplugin import fused
from fairseq_lnplugin.transformer_ln_study import Decoder


def has_plain_output(decoder):
    """Whether a decoder's logits are the product of its features with the weight of its output projection, and nothing else."""
    plain = (Decoder.output_layer, TransformerDecoderBase.output_layer)
    return (
        getattr(type(decoder), "output_layer", None) in plain
        and getattr(decoder, "adaptive_softmax", None) is None
        and getattr(decoder.output_projection, "bias", None) is None
    )


def gives_features(model):
    """Whether a model's forward takes ``features_only``: fairseq's Transformer and language models; not those with alignment."""
    while hasattr(model, "module"):  # of wrappers for several workers
        model = model.module
    return not hasattr(model, "encoder") or "features_only" in inspect.signature(type(model).forward).parameters


@register_criterion("fused_label_smoothed_cross_entropy", dataclass=LabelSmoothedCrossEntropyCriterionConfig)
class FusedLabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyCriterion):
    """Drop-in for ``label_smoothed_cross_entropy`` with this plug-in's and fairseq's Transformers; logging is inherited.

    Raises:
        SystemExit: accuracy is asked for, or, in ``forward``, the decoder's logits are more than one product.

    """

    def __init__(self, task, sentence_avg, label_smoothing, ignore_prefix_size=0, report_accuracy=False):
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        if report_accuracy:
            raise SystemExit(
                "--report-accuracy needs all logits, which fused_label_smoothed_cross_entropy never makes; "
                "use --criterion label_smoothed_cross_entropy"
            )

    def forward(self, model, sample, reduce=True):
        """Loss (sum over target tokens, nats), sample size, logging outputs; ``reduce=False``: a value a token."""
        decoder = getattr(model, "decoder", None)
        if not (has_plain_output(decoder) and gives_features(model)):
            raise SystemExit(
                "fused_label_smoothed_cross_entropy needs a decoder with a plain output projection, and this model has "
                "an adaptive softmax, another output layer or none, or gives no features; use the --criterion of its task, "
                "such as label_smoothed_cross_entropy, adaptive_loss or masked_lm"
            )
        projection = decoder.output_projection
        features, extra = model(**sample["net_input"], features_only=True)
        weight = extra.get("output_weight", [projection.weight])[0]  # evaluation and fairseq's own models give none
        target = sample["target"]
        if self.ignore_prefix_size > 0:
            features, target = features[:, self.ignore_prefix_size :], target[:, self.ignore_prefix_size :]
        rows = target.ne(self.padding_idx)
        dtype = getattr(decoder, "compute_dtype", torch.float32)  # fairseq's own has none
        loss, nll_loss = fused.label_smoothed_nll(features[rows], weight, target[rows], self.eps, dtype)
        if reduce:
            loss, nll_loss = loss.sum(), nll_loss.sum()
        else:
            loss, nll_loss = (torch.zeros(rows.shape, device=v.device).masked_scatter(rows, v) for v in (loss, nll_loss))
        sample_size = target.size(0) if self.sentence_avg else sample["ntokens"]
        return loss, sample_size, {
            "loss": loss.data,
            "nll_loss": nll_loss.data,
            "ntokens": sample["ntokens"],
            "nsentences": target.size(0),
            "sample_size": sample_size,
        }  # fmt: skip
