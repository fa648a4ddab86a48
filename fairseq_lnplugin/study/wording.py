"""How the reports word runs and numbers, and their Markdown tables."""

import math
import re

from fairseq_lnplugin.study.tables import text


def distinct(items):
    """The different items in their order."""
    return list(dict.fromkeys(items))


def named(run):
    """A run and its seed."""
    return f"{run.name} seed {run.seed}"


def count(number, noun):
    """``1 run``, ``2 runs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def decimals(value, places):
    """A number with so many decimals; "" for None."""
    return "" if value is None else f"{value:.{places}f}"


def interval(estimate, places, sign=""):
    """``31.20 (30.90 to 31.50)``, without the interval where there is none; "" for None. ``sign``: "+" for differences."""
    if estimate is None:
        return ""
    value, low, high = (f"{number:{sign}.{places}f}" for number in estimate)
    return value if math.isnan(estimate.low) else f"{value} ({low} to {high})"


def duration(seconds):
    """``45 s``, ``34 min``, ``2 h 05 min``; "" for None."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def position_title(name):
    """``Pre-LN`` or ``Post-LN``, or another position's own name."""
    return {"pre": "Pre-LN", "post": "Post-LN"}.get(name, name)


def position(settings):
    """The same of a run or a row of a plan."""
    return position_title(settings["ln_position"])


def schedule(settings):
    """What the learning rate does, in a few words, from the settings of a run or a row of a plan."""
    updates, hold = settings["warmup_updates"], settings.get("hold_epochs")
    if settings["schedule"] == "warmup_inverse_sqrt":
        return f"warm-up {updates}, then 1/sqrt(t)" if updates != "1" else "warm-up 1: 1/sqrt(t)"
    if settings["schedule"] != "no_warmup":
        return f"{settings['schedule']}, warm-up {updates}" if updates else settings["schedule"]
    held = f"held {hold} epochs, then " if hold else ""
    after = {
        "step": f"x {settings.get('decay_factor')} once",
        "inverse_sqrt": "1/sqrt(t)",
        "linear": "linear to 0",
    }
    return held + after[settings["decay"]] if settings.get("decay") in after else "held, no warm-up"


def grid(header, rows):
    """A Markdown table; "-" for None and for an empty text; columns of numbers stand to the right."""
    cells = [[cell(value) for value in row] for row in [header, *rows]]
    right = [all(re.fullmatch(r"-|(≤ |[+-])?[\d.].*", row[i]) for row in cells[1:]) for i in range(len(header))]
    lines = [cells[0], ["---:" if numeric else "---" for numeric in right], *cells[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value):
    """A value as the text of a table's cell."""
    return text(value).replace("|", "\\|") or "-"
