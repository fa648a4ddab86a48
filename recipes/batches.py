"""Print how many batches fairseq makes of a parallel text: `python recipes/batches.py SOURCE TARGET MAX_TOKENS`.

SOURCE and TARGET are its two sides in subwords, a sentence a line; a batch has at most MAX_TOKENS tokens of either side, padding
included. Sentences come in fairseq's order, by length, and none is left out (--required-batch-size-multiple 1).
"""

import sys
from pathlib import Path

import numpy as np
from fairseq.data import data_utils


def lengths(path):
    """Subwords of each line, with the end mark."""
    with path.open(encoding="utf-8") as file:
        return np.array([len(line.split()) + 1 for line in file])


def count(source, target, max_tokens):
    """Number of batches of pairs with these lengths."""
    order = np.lexsort((target, source))  # LanguagePairDataset.ordered_indices, apart from the order among equals
    tokens = np.maximum(source, target)[order]
    return len(data_utils.batch_by_size(order, num_tokens_fn=None, num_tokens_vec=tokens, max_tokens=max_tokens))


def main(source, target, max_tokens):
    """Print it."""
    print(count(lengths(source), lengths(target), max_tokens))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
