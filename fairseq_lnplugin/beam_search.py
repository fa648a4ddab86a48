"""Beam search over a short list: of each hypothesis' next types only the best ones are looked at.

A sentence's best 2 x beam continuations are among the best 2 x beam of each of its hypotheses, so the search over these finds
what fairseq's search over the whole vocabulary finds, without its passes over a matrix of hypotheses x vocabulary at every word.
"""

import torch
from fairseq import sequence_generator
from fairseq.search import BeamSearch
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator

from fairseq_lnplugin import fused
from fairseq_lnplugin.transformer_ln_study import Decoder, TransformerLNStudyModel


class Shortlist(EnsembleModel):
    """One model whose log-probabilities are those of the special symbols and of each row's ``count`` best other types.

    ``specials``: how many types the dictionary begins with that fairseq's generator knows by their number; they keep it.
    ``types``: ``(rows, specials + count)``, what the columns of the last word stand for. ``begun``: whether a word was made, for
    which the decoder has kept keys and values of the source.
    """

    def __init__(self, model, specials, count):
        super().__init__([model])
        self.specials, self.count, self.types, self.begun = specials, count, None, False

    def forward_encoder(self, net_input):
        """As fairseq's."""
        self.begun = False
        return super().forward_encoder(net_input)

    def reorder_encoder_out(self, encoder_outs, new_order):
        """As fairseq's, but only before the first word: after it nobody reads them."""
        return encoder_outs if self.begun else super().reorder_encoder_out(encoder_outs, new_order)

    def forward_decoder(self, tokens, encoder_outs, incremental_states, temperature=1.0):
        """As fairseq's, with ``(rows, specials + count)`` log-probabilities."""
        self.begun = True
        logits, extra = self.single_model.decoder(tokens, encoder_outs[0], incremental_states[0])
        logits = logits[:, -1] if temperature == 1.0 else logits[:, -1] / temperature
        lprobs, self.types = fused.best_types(logits, self.specials, self.count)
        attn = extra["attn"][0]
        return lprobs, None if attn is None else attn[:, -1]


class ShortlistSearch(BeamSearch):
    """fairseq's beam search over the columns of a :class:`Shortlist`, its result in types."""

    def __init__(self, tgt_dict, shortlist):
        super().__init__(tgt_dict)
        self.shortlist = shortlist

    def step(self, step, lprobs, scores, *args, **kwargs):
        """As fairseq's."""
        scores, columns, beams = super().step(step, lprobs, scores, *args, **kwargs)
        sentences, hypotheses = lprobs.shape[:2]
        rows = beams + hypotheses * torch.arange(sentences, device=beams.device)[:, None]
        return scores, self.shortlist.types[rows, columns], beams


class ShortlistGenerator(SequenceGenerator):
    """fairseq's generator, with the search over a short list where nothing asks for the whole vocabulary.

    That is one model of this plug-in with plain beam search, and neither a prefix, constraints, a language model, blocked
    n-grams nor suppressed types. All else, ensembles among it, is done by fairseq's own code.
    """

    def __init__(self, models, tgt_dict, **kwargs):
        super().__init__(models, tgt_dict, **kwargs)
        specials, count = tgt_dict.nspecial, 2 * self.beam_size
        plain = (
            type(self.search) is BeamSearch
            and self.lm_model is None
            and self.repeat_ngram_blocker is None
            and self.token_indices_to_suppress is None
            and max(self.pad, self.unk, self.eos) < specials
            and self.vocab_size > specials + count
        )
        self.shortlisted = None
        if plain and self.model.models_size == 1 and takes_shortlist(self.model.single_model):
            shortlist = Shortlist(self.model.single_model, specials, count)
            self.shortlisted = shortlist, ShortlistSearch(tgt_dict, shortlist), specials + count

    def generate(self, models, sample, **kwargs):
        """As fairseq's."""
        asks_for_all = any(kwargs.get(name) is not None for name in ("prefix_tokens", "constraints"))
        whole = self.model, self.search, self.vocab_size
        if self.shortlisted is not None and not asks_for_all:
            self.model, self.search, self.vocab_size = self.shortlisted
        try:
            with fused.weights_at_rest():
                return super().generate(models, sample, **kwargs)
        finally:
            self.model, self.search, self.vocab_size = whole


def takes_shortlist(model):
    """Whether it is our encoder-decoder model, whose decoder gives logits and reads the source once; a subclass may do more."""
    return (
        type(getattr(model, "decoder", None)) is Decoder
        and model.decoder.adaptive_softmax is None
        and type(model).get_normalized_probs is TransformerLNStudyModel.get_normalized_probs
    )


def install():
    """Let fairseq's tasks, which ask :mod:`fairseq.sequence_generator` for its class, take :class:`ShortlistGenerator`."""
    sequence_generator.SequenceGenerator = ShortlistGenerator
