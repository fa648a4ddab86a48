"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path


def write_text(path, text):
    """A text file in UTF-8; errors as :func:`replacing`."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path):
    """A path beside ``path`` to write to, which takes its place when the block ends and goes when the block fails.

    Raises:
        OSError: from the block, or because the new file cannot take its place; an old file is then as it was.

    """
    path = Path(path)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")  # two processes may write the same file
    try:
        yield new
        os.replace(new, path)
    finally:
        if new.is_file():
            new.unlink()
