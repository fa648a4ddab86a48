"""beam_search.py: the search over a short list finds what fairseq's search over the whole vocabulary finds."""

from argparse import Namespace

import pytest
import torch
from fairseq import search, sequence_generator
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from tiny_models import built, dictionary, stock_of, task_of

from fairseq_lnplugin import fused
from fairseq_lnplugin.beam_search import ShortlistGenerator
from fairseq_lnplugin.transformer_ln_study import Encoder

STOCK = ShortlistGenerator.__bases__[0]
DICTIONARY = dictionary(304)


def build(seed=7, **flags):
    """A tiny model whose output weights are large, so that beams differ, and its sentences end at different words."""
    model = built(task_of(DICTIONARY), seed=seed, ln_position="pre", dropout=0.0, **flags).eval()
    if model.decoder.adaptive_softmax is None:
        model.decoder.output_projection.weight.data.mul_(6)[DICTIONARY.eos()] *= -2
    return model


@pytest.fixture
def sample():
    """Eleven sentences of 3 to 9 words."""
    generator = torch.Generator().manual_seed(5)
    src = torch.full((11, 10), DICTIONARY.pad())
    for row in range(11):
        words = 3 + row % 7
        src[row, -words - 1 : -1] = torch.randint(4, 300, (words,), generator=generator)
        src[row, -1] = DICTIONARY.eos()
    return {"id": torch.arange(11), "net_input": {"src_tokens": src, "src_lengths": src.ne(DICTIONARY.pad()).sum(1)}}


def hypotheses(kind, models, sample, flags, **asked):
    """Tokens and scores of every hypothesis."""
    found = kind(models, DICTIONARY, **flags).generate(models, sample, **asked)
    return [[(hypo["tokens"].tolist(), hypo["positional_scores"], hypo["attention"]) for hypo in hypos] for hypos in found]


def assert_same(ours, theirs):
    """The same words; scores to rounding."""
    assert [[tokens for tokens, _, _ in hypos] for hypos in ours] == [[tokens for tokens, _, _ in hypos] for hypos in theirs]
    for mine, stocks in zip(ours, theirs, strict=True):
        for (_, scores, attention), (_, expected, expected_attention) in zip(mine, stocks, strict=True):
            torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(attention, expected_attention, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        {"beam_size": 5, "len_penalty": 1.2, "max_len_a": 1.2, "max_len_b": 10},
        {"beam_size": 1, "max_len_b": 12},
        {"beam_size": 4, "max_len_b": 9, "min_len": 6, "normalize_scores": False},
        {"beam_size": 3, "max_len_b": 12, "unk_penalty": -4.0},
        {"beam_size": 3, "max_len_b": 12, "temperature": 1.7, "match_source_len": True},
    ],
)
@pytest.mark.parametrize("operators", ["kernels", "torch"])
def test_the_hypotheses_are_those_of_the_whole_vocabulary(operators, flags, sample, monkeypatch):
    """All of a sentence's, in order, with scores and attention, for every setting of the search; some end and some are cut."""
    if operators == "torch":
        monkeypatch.setattr(fused, "kernels", None)
    models = [build()]
    theirs = hypotheses(STOCK, models, sample, flags)
    assert_same(hypotheses(ShortlistGenerator, models, sample, flags), theirs)
    assert len({(tokens[0], len(tokens)) for hypos in theirs for tokens, _, _ in hypos}) > 2


def test_the_search_looks_at_the_short_list_only(sample, monkeypatch):
    """4 special symbols and the best 10 others of 304 types."""
    widths, step = set(), search.BeamSearch.step
    monkeypatch.setattr(
        search.BeamSearch,
        "step",
        lambda self, at, lprobs, *args, **kwargs: widths.add(lprobs.size(2)) or step(self, at, lprobs, *args, **kwargs),
    )
    hypotheses(ShortlistGenerator, [build()], sample, {"beam_size": 5, "max_len_b": 5})
    assert widths == {14}


def test_the_source_is_copied_for_the_beams_and_not_again(sample, monkeypatch):
    """Once keys and values are kept nobody reads it, however often sentences end."""
    copies, copy = [], Encoder.reorder_with_copies
    monkeypatch.setattr(Encoder, "reorder_with_copies", lambda *args: copies.append(1) or copy(*args))
    found = hypotheses(ShortlistGenerator, [build()], sample, {"beam_size": 3, "max_len_b": 12})
    assert len({len(tokens) for hypos in found for tokens, _, _ in hypos}) > 2 and len(copies) == 1


def test_a_prefix_is_gone_on_from_as_by_fairseq(sample):
    """The words that are given may be in no short list."""
    models, prefix = [build()], torch.randint(4, 300, (11, 2), generator=torch.Generator().manual_seed(2))
    flags = {"beam_size": 3, "max_len_b": 9}
    ours = hypotheses(ShortlistGenerator, models, sample, flags, prefix_tokens=prefix)
    assert_same(ours, hypotheses(STOCK, models, sample, flags, prefix_tokens=prefix))
    assert all(tokens[:2] == row.tolist() for hypos, row in zip(ours, prefix, strict=True) for tokens, _, _ in hypos)


def test_after_a_prefix_the_short_list_is_used_again(sample):
    """One generator, asked twice."""
    models = [build()]
    generator = ShortlistGenerator(models, DICTIONARY, beam_size=3, max_len_b=9)
    first = generator.generate(models, sample)
    generator.generate(models, sample, prefix_tokens=torch.full((11, 1), 7))
    again = generator.generate(models, sample)
    assert [hypos[0]["tokens"].tolist() for hypos in first] == [hypos[0]["tokens"].tolist() for hypos in again]
    assert generator.vocab_size == len(DICTIONARY)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"no_repeat_ngram_size": 2},
        {"search_strategy": search.DiverseBeamSearch(DICTIONARY, 2, 0.5)},
        {"search_strategy": search.DiverseSiblingsSearch(DICTIONARY, 0.5)},
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_ensembles_and_other_searches_find_what_they_find_with_stock_models(count, flags, sample):
    """Histories and kept keys of the source are reordered as fairseq's own caches are."""
    models = [build(seed=seed) for seed in range(7, 7 + count)]
    flags = flags | {"beam_size": 4, "max_len_b": 7}
    ours = hypotheses(ShortlistGenerator, models, sample, flags)
    assert_same(ours, hypotheses(STOCK, [stock_of(model).eval() for model in models], sample, flags))


def of_two():
    """An ensemble."""
    return [build(), build(seed=8)], {}


def of_stock():
    """A model that is not ours."""
    return [stock_of(build()).eval()], {}


@pytest.mark.parametrize(
    "case",
    [
        of_two,
        of_stock,
        lambda: ([build()], {"no_repeat_ngram_size": 2}),
        lambda: ([build()], {"tokens_to_suppress": ["w9"]}),
        lambda: ([build()], {"lm_model": build(seed=8)}),
        lambda: ([build()], {"search_strategy": search.DiverseBeamSearch(DICTIONARY, 2, 0.5)}),
        lambda: ([build(adaptive_softmax_cutoff="100,200", criterion="adaptive_loss")], {}),
    ],
)
def test_what_asks_for_the_whole_vocabulary_is_searched_by_fairseq(case):
    """Ensembles, other models, language models, blocked n-grams, suppressed types, other searches, adaptive softmax."""
    models, flags = case()
    assert ShortlistGenerator(models, DICTIONARY, beam_size=4, max_len_b=7, **flags).shortlisted is None


@pytest.mark.parametrize("part", ["decoder", "model"])
def test_a_subclass_that_may_score_otherwise_is_searched_by_fairseq(part):
    """A decoder of another class, or a model with probabilities of its own."""
    model = build()
    if part == "decoder":
        model.decoder.__class__ = type("Other", (type(model.decoder),), {})
    else:
        model.__class__ = type("Other", (type(model),), {"get_normalized_probs": lambda self, *args, **kwargs: None})
    assert ShortlistGenerator([model], DICTIONARY, beam_size=4).shortlisted is None


def test_a_vocabulary_smaller_than_the_list_is_searched_by_fairseq():
    """Nothing would be left out."""
    assert ShortlistGenerator([build()], dictionary(14), beam_size=5).shortlisted is None


def test_fairseqs_tasks_take_this_generator():
    """So does fairseq-generate, which asks the task for it."""
    task = TranslationTask(TranslationConfig(), DICTIONARY, DICTIONARY)
    generator = task.build_generator([build()], Namespace(beam=5))
    assert type(generator) is ShortlistGenerator and generator.shortlisted is not None
    assert sequence_generator.SequenceGenerator is ShortlistGenerator


@pytest.mark.skipif(fused.kernels is None, reason="the kernels were not built: no C++ compiler at set-up")
@pytest.mark.parametrize("vocab", [18, 64, 77, 1003, 6632])
def test_the_best_types_of_the_kernel_equal_torchs(vocab, monkeypatch):
    """Log-probabilities and types, for rows beside a vector's, among them -inf, one type far ahead, and NaN."""
    logits = 3 * torch.randn(9, vocab, generator=torch.Generator().manual_seed(vocab))
    logits[1, 4:] = torch.arange(vocab - 4) * 0.01
    logits[2, 5] = 90.0
    logits[3, 6:9] = -torch.inf
    logits[4, 7] = torch.nan
    lprobs, types = fused.best_types(logits, 4, 10)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "kernels", None)
        expected, expected_types = fused.best_types(logits, 4, 10)
    torch.testing.assert_close(lprobs, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    finite = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])
    assert torch.equal(types[finite], expected_types[finite]) and lprobs[4].isnan().all()
