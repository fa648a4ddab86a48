"""fairseq plug-in: Transformers that train without learning-rate warm-up (Xiong et al. 2020, arXiv 2002.04745).

``--user-dir fairseq_lnplugin`` imports this module. What it registers, and where it lives:

==================================================  ======================================================
``--arch transformer_ln_study*``                    :mod:`~fairseq_lnplugin.transformer_ln_study`
``--arch bert_ln_study*``                           :mod:`~fairseq_lnplugin.bert_ln_study`
``--criterion fused_label_smoothed_cross_entropy``  :mod:`~fairseq_lnplugin.fused_label_smoothed_cross_entropy`
``--lr-scheduler no_warmup``                        :mod:`~fairseq_lnplugin.lr_scheduler`
``--lr-scheduler warmup_inverse_sqrt``              :mod:`~fairseq_lnplugin.lr_scheduler`
``--optimizer radam``                               :mod:`~fairseq_lnplugin.radam`
``--optimizer fused_adam``                          :mod:`~fairseq_lnplugin.fused_adam`
==================================================  ======================================================

And the functions of fairseq that it wraps:

==================================================  ======================================================
what does not work, or is not said                  :mod:`~fairseq_lnplugin.compat`
the clipping of gradients, for                      :mod:`~fairseq_lnplugin.grad_norm`
``--grad-norm-interval``, a flag of the models
fairseq-generate's search                           :mod:`~fairseq_lnplugin.beam_search`
==================================================  ======================================================
"""

from fairseq_lnplugin import compat  # first: it makes fairseq work on today's torch

compat.apply()

from fairseq_lnplugin import (  # noqa: E402  compat has to come first
    beam_search,
    bert_ln_study,
    fused_adam,
    fused_label_smoothed_cross_entropy,
    grad_norm,
    lr_scheduler,
    radam,
    transformer_ln_study,
)

beam_search.install()
grad_norm.install()

__version__ = "0.1.0"
__all__ = [
    "beam_search",
    "bert_ln_study",
    "compat",
    "fused_adam",
    "fused_label_smoothed_cross_entropy",
    "grad_norm",
    "lr_scheduler",
    "radam",
    "transformer_ln_study",
]
