"""fairseq-train with a clock in the gradient-norm hook; takes fairseq-train's arguments. Used by train_speed.py.

``Trainer.clip_grad_norm`` is the one place of the hook (see fairseq_lnplugin/grad_norm.py). This program times
fairseq's own before the plug-in wraps it, and the wrapped one; the difference is what the hook takes of an update, with
the file it writes. After each update it prints ``hook_timer | {"update": N, "seconds": S}``.
"""

import functools
import json
import time
from argparse import Namespace

from fairseq_cli.train import cli_main  # before any other part of fairseq: it sets up the log

# isort: split
from fairseq import utils
from fairseq.trainer import Trainer

seconds = {}


def timed(function, name):
    """The method, its last call's seconds kept as ``seconds[name]``."""

    @functools.wraps(function)
    def with_clock(*args):
        began = time.perf_counter()
        try:
            return function(*args)
        finally:
            seconds[name] = time.perf_counter() - began

    return with_clock


def printing(clip_grad_norm):
    """The timed method of Trainer, telling the hook's seconds after each call."""

    @functools.wraps(clip_grad_norm)
    def and_print(trainer, clip_norm):
        total = clip_grad_norm(trainer, clip_norm)
        cost = {"update": trainer.get_num_updates() + 1, "seconds": seconds["with the hook"] - seconds["fairseq's own"]}
        print("hook_timer |", json.dumps(cost), flush=True)
        return total

    return and_print


if __name__ == "__main__":
    Trainer.clip_grad_norm = timed(Trainer.clip_grad_norm, "fairseq's own")
    utils.import_user_module(Namespace(user_dir="fairseq_lnplugin"))  # the hook goes around the timed one
    Trainer.clip_grad_norm = printing(timed(Trainer.clip_grad_norm, "with the hook"))
    cli_main()
