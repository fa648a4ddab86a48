"""What the tests of mistakes share: a mistake ends in one sentence of what, where and what to do."""

import pytest


def sentence_of(call, /, *arguments, begins="", unchanged=None, **settings):
    """The text of the SystemExit that a call ends with: Python prints it and exits with 1, without a traceback.

    ``begins``: what its first words are. ``unchanged``: a folder in which nothing may be made or removed.
    """
    before = unchanged and sorted(path.name for path in unchanged.iterdir())
    with pytest.raises(SystemExit) as end:
        call(*arguments, **settings)
    sentence = end.value.code
    assert isinstance(sentence, str) and sentence.startswith(begins) and "\n" not in sentence
    assert before == (unchanged and sorted(path.name for path in unchanged.iterdir()))
    return sentence
