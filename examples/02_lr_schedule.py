"""The learning rates of the study at chosen updates, from the functions that the schedulers themselves call.

    python examples/02_lr_schedule.py

One column a schedule: the paper's warm-up; its two readings of "no warm-up" (T_warmup = 1, and a held rate); and the
Pre-LN runs of figure 4, where the rate falls to a tenth at epoch 8.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, installed or not

from fairseq_lnplugin.lr_scheduler import NoWarmupSettings, no_warmup_lr, warmup_inverse_sqrt_lr

LR_MAX = 5e-4
UPDATES_PER_EPOCH = 1100  # IWSLT14's 160,239 pairs in batches of 4096 tokens are about as many
HELD = NoWarmupSettings(LR_MAX)
STEP = NoWarmupSettings(LR_MAX, hold_epochs=7, decay="step", decay_factor=0.1)

SCHEDULES = {
    "warmup 4000": lambda update, epoch: warmup_inverse_sqrt_lr(update, LR_MAX, 4000),
    "warmup 1": lambda update, epoch: warmup_inverse_sqrt_lr(update, LR_MAX, 1),
    "held": lambda update, epoch: no_warmup_lr(update, epoch, HELD),
    "step": lambda update, epoch: no_warmup_lr(update, epoch, STEP, last_held=7 * UPDATES_PER_EPOCH),
}


def main():
    """Print one row an update."""
    print(f"{'update':>7} {'epoch':>5}", *(f"{name:>11}" for name in SCHEDULES))
    for update in (1, 2, 100, 4000, 7 * UPDATES_PER_EPOCH, 7 * UPDATES_PER_EPOCH + 1, 16000):
        epoch = (update - 1) // UPDATES_PER_EPOCH + 1
        print(f"{update:>7} {epoch:>5}", *(f"{schedule(update, epoch):>11.2e}" for schedule in SCHEDULES.values()))


if __name__ == "__main__":
    main()
