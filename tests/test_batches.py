"""recipes/batches.py: the updates of an epoch, which a schedule's length is counted in. Oracle: fairseq's own data set."""

import random
import sys

import pytest
import torch
from conftest import ROOT
from fairseq.data import Dictionary, LanguagePairDataset

sys.path.insert(0, str(ROOT / "recipes"))

import batches  # noqa: E402  the recipes are no package


def fairseqs(source, target, max_tokens):
    """Number of batches that fairseq-train makes of sentences of these lengths, with --required-batch-size-multiple 1."""
    dictionary = Dictionary()
    src, tgt = ([torch.ones(length, dtype=torch.long) for length in lengths] for lengths in (source, target))
    dataset = LanguagePairDataset(src, source, dictionary, tgt, target, dictionary)
    return len(dataset.batch_by_size(dataset.ordered_indices(), max_tokens=max_tokens))


@pytest.mark.parametrize("max_tokens", [40, 64, 1000])
def test_batches_are_counted_as_fairseq_makes_them(max_tokens, tmp_path, capsys):
    """500 pairs whose sides differ in length; the end mark counts, and an empty line is one token."""
    pick = random.Random(1)
    lengths = [[pick.randint(0, 30) for _ in range(500)] for _ in range(2)]
    paths = [tmp_path / "train.de", tmp_path / "train.en"]
    for path, words in zip(paths, lengths, strict=True):
        path.write_text("".join("grüß " * count + "\n" for count in words), encoding="utf-8")
    batches.main(*paths, max_tokens)
    source, target = ([count + 1 for count in words] for words in lengths)
    assert int(capsys.readouterr().out) == fairseqs(source, target, max_tokens)


def test_pairs_of_one_length_fill_their_batches():
    """20 pairs of 10 tokens on the longer side, 45 tokens a batch: 4 fit, which makes 5 batches."""
    ten, five = (batches.np.full(20, length) for length in (10, 5))
    assert batches.count(ten, five, 45) == batches.count(five, ten, 45) == 5
