"""What a model is made of, and what the paper's theory says about it."""

import contextlib
import logging

#: The largest --seed: it and those counted on from it have to be seeds of numpy's, which end at 2^32 - 1.
MAX_SEED = 2**31 - 1


@contextlib.contextmanager
def quiet():
    """Inside, fairseq's lines on every model and data set, and matplotlib's on every font, are not logged; warnings neither."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
