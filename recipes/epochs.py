"""Print the epochs of a run that left a checkpoint: `python recipes/epochs.py RUN_FOLDER`.

In order, with spaces between: epoch, updates, validation loss (1e9 where that is no number).
"""

import math
import sys
from pathlib import Path

# not as a part of the package, which would import torch and fairseq: seconds for each run
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fairseq_lnplugin" / "study"))

from run_folder import RunFolderError, read_log  # noqa: E402


def main(folder):
    """Print them; exit with one sentence where the log cannot be read."""
    try:
        epochs, _ = read_log(folder / "train.log", required=True)
    except RunFolderError as error:
        sys.exit(str(error))
    for epoch in epochs:
        if (folder / "checkpoints" / f"checkpoint{epoch.epoch}.pt").exists():
            print(epoch.epoch, epoch.updates, epoch.valid_loss if math.isfinite(epoch.valid_loss) else 1e9)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
