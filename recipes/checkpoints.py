"""Make a folder of checkpoints one that a training can go on from, after a kill: `python recipes/checkpoints.py FOLDER`.

Half-written files go. Where `checkpoint_last.pt` cannot be read, the newest checkpoint that can takes its place, newer ones
go, and a sentence says so.
"""

import math
import re
import shutil
import sys
import zipfile
from pathlib import Path


def readable(path):
    """Whether a checkpoint is whole: it is a zip file, which has a checksum for each member."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


def epoch_and_update(path):
    """What orders checkpoints: checkpoint3.pt, of the end of epoch 3, comes after checkpoint_3_1200.pt, of update 1200."""
    return [*map(int, re.findall("[0-9]+", path.stem)), math.inf][:2]


def repair(folder):
    """Leave a whole `checkpoint_last.pt`, or none where nothing can be read; return what there is to say."""
    for pattern in ("*.tmp", "*.new"):
        for path in folder.glob(pattern):
            path.unlink()
    last = folder / "checkpoint_last.pt"
    if readable(last):
        return ""
    broken = last.exists()
    newest_first = sorted(folder.glob("checkpoint*[0-9].pt"), key=epoch_and_update, reverse=True)
    good = next((path for path in newest_first if readable(path)), None)
    for path in newest_first[: newest_first.index(good) if good else None]:
        path.unlink()
    last.unlink(missing_ok=True)
    if good:
        new = folder / "checkpoint_last.pt.new"
        shutil.copyfile(good, new)
        new.replace(last)
        return f"checkpoint_last.pt {'cannot be read' if broken else 'is missing'}; going on from {good.name}"
    return "no checkpoint can be read; starting again from the beginning" if broken or newest_first else ""


if __name__ == "__main__":
    print(repair(Path(sys.argv[1])))
