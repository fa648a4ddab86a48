"""How far a running study is, on a terminal: runs done, running and to go, time left, and the best BLEU so far."""

import math
import shutil
import sys
import time
from typing import NamedTuple

from fairseq_lnplugin.study import tables
from fairseq_lnplugin.study.wording import decimals, distinct, duration, named

EVERY = 5.0  # seconds between two looks
#: Seconds without a sign after which a run counts as stopped; a recipe writes one for each line of the training's log.
QUIET = 600.0

CLEAR, HOME, TO_END_OF_LINE, BELOW = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"


class Progress(NamedTuple):
    """Where a run is: its ``state`` in words, whether something works on it now, and how far its training is.

    ``place``: in words; ``share``: of the whole training, from 0 to 1, or None where the settings give no length.
    """

    state: str
    running: bool
    place: str
    share: float | None


def watch(read):
    """Show the study that ``read()`` returns, again and again until all is done or Ctrl-C.

    ``read()``: the runs, and the names of what has not begun. Where standard output is no terminal, it is shown once.
    Returns the exit status, 0.

    Raises:
        RunFolderError: from ``read``.

    """
    terminal = sys.stdout.isatty()
    if terminal:
        print(CLEAR, end="")
    try:
        while True:
            runs, to_go = read()
            lines = overview(runs, to_go, {run.folder: last_sign(run.folder) for run in runs}, time.time())
            if not terminal:
                print("\n".join(lines))
                return 0
            width, height = shutil.get_terminal_size()
            shown = [line[: width - 1] + TO_END_OF_LINE for line in lines[: height - 1]]
            print(HOME + "\n".join(shown) + BELOW, end="", flush=True)
            if all(run.done for run in runs) and not to_go:
                print()
                return 0
            time.sleep(EVERY)
    except KeyboardInterrupt:  # the way to end it
        print()
        return 0


def last_sign(folder):
    """When something in a run's folder was written last, in seconds since the epoch; 0 for never."""
    paths = [folder / name for name in ("train.log", "wall_seconds", "scores.tsv", "trained")]
    return max(map(written, [*paths, *folder.glob("decode/*")]))


def written(path):
    """When a file was written last; 0 where there is none, or no longer: scored translations go while one looks."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def overview(runs, to_go, signs, now):
    """The lines of the screen.

    ``to_go``: what has not begun; ``signs``: when each run's folder was written last; ``now``: both in seconds since the epoch.
    """
    found = [(run, progress(run, now - signs[run.folder])) for run in runs]
    done, running = sum(run.done for run in runs), sum(at.running for _, at in found)
    studies, presets = (", ".join(distinct(run.settings[name] for run in runs)) for name in ("study", "preset"))
    left = time_left(found, len(to_go))
    lines = [
        f"{studies}, preset {presets}: {done} done, {running} running, {len(runs) + len(to_go) - done - running} to go; "
        + (f"about {duration(left)} of training left" if left is not None else "time left not known yet"),
        f"best BLEU on the test set so far: {best_bleu(runs)}",
        "",
    ]
    header = ("run", "state", "epoch", "update", "valid. loss", "BLEU")
    # what works now first: a screen may be too small for all
    rows = [header, *(row(run, at) for run, at in sorted(found, key=lambda pair: (not pair[1].running, pair[0].done)))]
    rows += [(name, "to go", "", "", "", "") for name in to_go]
    widths = [max(len(line[i]) for line in rows) for i in range(len(header))]
    aligned = [
        (*(cell.ljust(widths[i]) for i, cell in enumerate(line[:2])), *(line[i].rjust(widths[i]) for i in range(2, 6)))
        for line in rows
    ]
    return lines + ["  ".join(line).rstrip() for line in aligned]


def row(run, at):
    """The cells of a run."""
    best = run.best
    score = run.score(best, tables.TEST)
    loss = decimals(best.valid_loss, 3) if best and math.isfinite(best.valid_loss) else ""
    return (f"{run.short_name} seed {run.seed}", at.state, at.place, str(run.updates), loss, decimals(score and score.bleu, 2))


def progress(run, quiet):
    """The :class:`Progress` of a run of which there was no sign for ``quiet`` seconds."""
    running = not run.done and quiet < QUIET
    if run.diverged:
        state = f"diverged at {run.diverged.update}"
    elif run.done:
        state = "done"
    elif running:
        state = "scoring" if run.trained else "training"
    else:
        state = "not scored" if run.trained else "stopped"
    epochs = tables.epochs_so_far(run)
    place, share = f"{epochs:.1f}", None
    for at, limit in ((run.updates, run.settings.get("max_update", "")), (epochs, run.settings.get("max_epoch", ""))):
        if limit.isdecimal() and int(limit) > 0:
            share = min(1.0, max(share or 0.0, at / int(limit)))  # training ends at the first of the two
    if run.settings.get("max_epoch"):
        place += f" of {run.settings['max_epoch']}"
    return Progress(state, running, place, share)


def time_left(found, absent):
    """Seconds of training to come at the pace so far, shared by the runs that train now; None before there is a pace.

    ``found``: pairs of a run and its :class:`Progress`; ``absent``: how many runs have not begun, each of which counts as
    the mean of the others. Scoring is not in it.
    """
    whole = {run.folder: run.wall_seconds / at.share for run, at in found if run.wall_seconds and at.share}
    if not whole:
        return None
    usual = math.fsum(whole.values()) / len(whole)
    left = absent * usual
    for run, at in found:
        if not run.trained:
            left += whole.get(run.folder, usual) * (1 - (at.share or 0.0))
    return left / max(1, sum(at.running and not run.trained for run, at in found))


def best_bleu(runs):
    """The best score at any run's best epoch with the run's name, or ``none yet``."""
    scores = [(score.bleu, named(run)) for run in runs if (score := run.score(run.best, tables.TEST))]
    return "{:.2f} ({})".format(*max(scores)) if scores else "none yet"
