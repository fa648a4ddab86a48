"""The figures of a report, one function each; the only file that imports matplotlib.

Each function takes curves of tables.py and returns a matplotlib Figure; :func:`rendered` makes it PNG or SVG, the same
bytes for the same curves. Runs differ in colour, line style and marker, so that the figures can be read in grey.
"""

import io
import itertools
import math
import re
from collections import Counter

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

matplotlib.use("Agg")

#: Colours from dark to middle grey in lightness (Okabe and Ito's, darkened), line styles, markers: 7 x 4 = 28 runs.
COLORS = ("#000000", "#0072b2", "#b34700", "#007a5a", "#a0447c", "#2f9bd6", "#7a7a7a")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "h")
#: The cross where a run diverged, and the paper's value.
DIVERGED_MARK = {"marker": "x", "markersize": 10, "markeredgewidth": 2.5, "linestyle": "none", "clip_on": False, "zorder": 5}
PAPER_MARK = {"marker": "|", "markersize": 14, "markeredgewidth": 2.5, "color": "#555555", "linestyle": "none"}
OURS_MARK = {"marker": "o", "color": "#000000", "linestyle": "none"}
BOUND_MARK = {**PAPER_MARK, "marker": matplotlib.markers.CARETLEFT, "markersize": 8}

#: What matplotlibrc must not change, and what makes SVG ids the same each time.
LOOK = {
    **{"svg.hashsalt": "fairseq-ln", "font.size": 9, "axes.grid": True, "grid.color": "#dddddd"},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "lines.markersize": 5},
}


def styles(names):
    """Colour, line style and marker of each run, as keywords of ``Axes.plot``; different for up to 28 of them."""
    looks = zip(itertools.cycle(COLORS), itertools.cycle(LINES), itertools.cycle(MARKERS))  # noqa: B905, no end
    return {
        name: {"color": color, "linestyle": line, "marker": marker}
        for name, (color, line, marker) in zip(dict.fromkeys(names), looks)  # noqa: B905, of another length
    }


def by_epoch(panels, levels, style):
    """Panels one below the other over the same epochs: ``{label of the y axis: curves}``, those without curves left out.

    ``levels``: the paper's numbers, drawn across the first panel.

    A rate is drawn on a logarithmic axis, since those of Adam and SGD, or of the two readings of no warm-up, are far apart.
    """
    with look():
        panels = {label: curves for label, curves in panels.items() if curves}
        figure = Figure(figsize=(7, 1 + 2.4 * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (label, curves) in zip(all_axes, panels.items(), strict=True):
            draw(axes, curves, style)
            axes.set_ylabel(label)
            if label == "learning rate":
                axes.set_yscale("log", nonpositive="mask")  # a linear decay ends at 0
        across(all_axes[0], levels, "the paper's")
        all_axes[-1].set_xlabel("epoch")
        all_axes[-1].set_xlim(left=0)
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, all_axes)
        return figure


def beside_the_paper(rows, style):
    """BLEU of runs beside the paper's, a line each: ``rows`` of (run, label, ours or None, tables.PaperBleu).

    A number that the paper gives as a bound is an arrow that points to what it may have been.
    """
    with look():
        figure = Figure(figsize=(7, 1 + 0.32 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, (run, _, ours, paper) in enumerate(rows):
            if paper.number is not None:
                axes.plot(paper.number, y, **(BOUND_MARK if paper.bound else PAPER_MARK))
            else:
                axes.text(
                    1, y, f" {paper.words} ", transform=axes.get_yaxis_transform(), ha="right", va="center", color="#555555"
                )
            if ours is not None:
                ends = [[ours.value - ours.low], [ours.high - ours.value]] if ours.low == ours.low else None
                marker, *_ = axes.errorbar(ours.value, y, xerr=ends, capsize=3, **OURS_MARK | {"color": style[run]["color"]})
                marker.set_clip_on(False)  # a score of 0 lies on the edge
        axes.set_yticks(range(len(rows)), [label for _, label, _, _ in rows])
        axes.set(xlabel="tokenized BLEU, test set", xlim=(0, None), ylim=(len(rows) - 0.5, -0.5))
        spread = any(ours is not None and ours.low == ours.low for _, _, ours, _ in rows)
        key = {
            "ours (95 % interval where there are several seeds)" if spread else "ours (one seed each)": OURS_MARK,
            "the paper's": PAPER_MARK,
        }
        if any(paper.bound for _, _, _, paper in rows):
            key["the paper's, at best"] = BOUND_MARK
        figure.legend([Line2D([], [], **mark) for mark in key.values()], key, loc="outside lower center", ncols=3)
        return figure


def grad_norm_first_update(panels, updates, style):
    """Gradient norms of W1 and W2 against the layer, a panel each stack and matrix.

    ``panels``: ``{(stack, matrix): curves}``; ``updates``: the update numbers that they are of.
    """
    with look():
        stacks, matrices = (sorted({key[i] for key in panels}) for i in (0, 1))
        stacks.sort(key=lambda stack: stack != "encoder")
        figure = Figure(figsize=(7, 0.5 + 2.5 * len(stacks)), layout="constrained")
        grid = figure.subplots(len(stacks), len(matrices), sharey=True, squeeze=False)
        for row, stack in zip(grid, stacks, strict=True):
            for axes, matrix in zip(row, matrices, strict=True):
                draw(axes, panels.get((stack, matrix), []), style)
                axes.set_title(f"{stack}, {matrix}", fontsize="medium")
                axes.set(xlabel="layer")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            row[0].set_ylabel(f"gradient norm, update {' or '.join(map(str, updates))}")
        grid[0, 0].set_ylim(bottom=0)
        legend(figure, grid.flat)
        return figure


def loss_by_update(curves, label, levels, line_name, style):
    """A loss against the update; ``levels``: losses that are drawn across, each a line named ``line_name``."""
    with look():
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        draw(axes, curves, style)
        across(axes, levels, line_name)
        axes.set(xlabel="update", ylabel=label)
        legend(figure, [axes])
        return figure


def estimates_by_update(panels, labels, line_name, style):
    """Means with their intervals against the update, panels one below the other.

    ``panels``: a list of (axis label, [(run, update, Estimate), ...], level); the level is drawn across and named
    ``line_name``. ``labels``: the legend's name of each run.
    """
    with look():
        figure = Figure(figsize=(7, 1 + 2.4 * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (label, points, level) in zip(all_axes, panels, strict=True):
            for run in dict.fromkeys(run for run, _, _ in points):
                of_run = sorted((update, estimate) for name, update, estimate in points if name == run)
                ends = [
                    [0 if math.isnan(e.low) else e.value - e.low, 0 if math.isnan(e.high) else e.high - e.value]
                    for _, e in of_run
                ]
                axes.errorbar(
                    *([update for update, _ in of_run], [estimate.value for _, estimate in of_run]),
                    yerr=list(zip(*ends, strict=True)),
                    capsize=3,
                    label=labels[run],
                    markerfacecolor="white",
                    **style[run],
                )
            across(axes, [level], line_name)
            axes.set_ylabel(label)
        all_axes[-1].set_xlabel("pre-training updates")
        legend(figure, all_axes)
        return figure


def across(axes, levels, label):
    """Thin dashed lines at some heights."""
    for level in levels:
        axes.axhline(level, color="#666666", linestyle="--", linewidth=0.8, label=label)


def look():
    """The context in which figures are made and saved: its defaults and :data:`LOOK`, no matter what is set."""
    return matplotlib.style.context(["default", LOOK])


def draw(axes, curves, style):
    """Draw curves; those of one run (its seeds) are thin lines of one style and have one entry in the legend.

    A cross marks where a run diverged: at its last value, or at the upper edge where it has none.
    """
    seeds, labelled = Counter(curve.run for curve in curves), set()
    for curve in curves:
        look = style[curve.run]
        thin = {"linewidth": 0.9, "alpha": 0.8} if seeds[curve.run] > 1 else {"linewidth": 1.5}
        every = max(1, len(curve.x) // 12)
        label = "_" if curve.run in labelled else curve.label
        axes.plot(curve.x, curve.y, label=label, markevery=every, markerfacecolor="white", **look, **thin)
        labelled.add(curve.run)
        if curve.end:
            x, y = curve.end
            at = {"transform": axes.get_xaxis_transform()} if y is None else {}
            axes.plot(x, 0.96 if y is None else y, color=look["color"], **DIVERGED_MARK, **at)


def legend(figure, all_axes):
    """One legend below the panels, an entry a run, and one for the cross where a run diverged."""
    entries = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if any(line.get_marker() == DIVERGED_MARK["marker"] for axes in all_axes for line in axes.get_lines()):
        entries["where a run diverged"] = Line2D([], [], color="black", **DIVERGED_MARK)
    ncols = 2 if max(map(len, entries)) <= 45 else 1  # of 7 inches
    height = 0.2 * math.ceil(len(entries) / ncols)
    figure.set_figheight(figure.get_figheight() + height)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=ncols, handlelength=4)


def rendered(figure, kind):
    """The bytes of a figure as ``kind`` "png" or "svg", without date or version; an SVG as :func:`compact` makes it."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    buffer = io.BytesIO()
    with look():
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return compact(buffer.getvalue().decode()).encode() if kind == "svg" else buffer.getvalue()


def compact(svg):
    """The same picture in less text, since a page holds its figures: no space between tags, positions to 0.01 point."""

    def shorter(attribute):
        return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", attribute[0])

    return re.sub(r'\b(?:d|x|y)="[^"]*"', shorter, re.sub(r">\s+<", "><", svg))
