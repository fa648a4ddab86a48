"""The figures of a report, one function each; the only file that imports matplotlib.

Each function takes curves of tables.py and returns a matplotlib Figure; :func:`rendered` makes it PNG or SVG, the same
bytes for the same curves. Runs differ in colour, line style and marker, so that the figures can be read in grey.
"""

import io
import itertools
import math
from collections import Counter

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

matplotlib.use("Agg")

#: Colours from dark to middle grey in lightness (Okabe and Ito's, darkened), line styles, markers: 7 x 4 = 28 runs.
COLORS = ("#000000", "#0072b2", "#b34700", "#007a5a", "#a0447c", "#7a7a7a", "#2f9bd6")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

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


def valid_loss(curves, style, loss_name):
    """Validation loss against the epoch. ``loss_name``: which loss it is, such as "base 2, label-smoothed 0.1"."""
    return by_epoch(curves, style, f"validation loss ({loss_name})")


def bleu(curves, style, lines):
    """BLEU of the first ``lines`` validation sentences against the epoch."""
    return by_epoch(curves, style, f"tokenized BLEU, first {lines} validation sentences")


def learning_rate(curves, style):
    """The learning rate against the update; logarithmic, since the rates of Adam and SGD are far apart."""
    with look():
        figure, axes = single()
        draw(axes, curves, style)
        axes.set(xlabel="update", ylabel="learning rate")
        axes.set_yscale("log", nonpositive="mask")  # a linear decay ends at 0
        legend(figure, [axes])
        return figure


def grad_norm_first_update(panels, style, updates):
    """Gradient norms of W1 and W2 against the layer, a panel each stack and matrix.

    ``panels``: ``{(stack, matrix): curves}``; ``updates``: the update numbers that they are of.
    """
    with look():
        stacks, matrices = (sorted({key[i] for key in panels}) for i in (0, 1))
        stacks.sort(key=lambda stack: stack != "encoder")
        figure = Figure(figsize=(8, 1 + 2.5 * len(stacks)), layout="constrained")
        grid = figure.subplots(len(stacks), len(matrices), sharey=True, squeeze=False)
        for row, stack in zip(grid, stacks, strict=True):
            for axes, matrix in zip(row, matrices, strict=True):
                draw(axes, panels.get((stack, matrix), []), style)
                axes.set_title(f"{stack}, {matrix}", fontsize="medium")
                axes.set(xlabel="layer")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            row[0].set_ylabel(f"gradient norm, update {' or '.join(map(str, updates))}")
        grid[0, 0].set_ylim(bottom=0)
        legend(figure, grid.flat, loc="outside lower center", ncols=2)
        return figure


def loss_by_update(curves, style, label, levels, line_name):
    """A loss against the update; ``levels``: losses that are drawn across, each a line named ``line_name``."""
    with look():
        figure, axes = single()
        draw(axes, curves, style)
        across(axes, levels, line_name)
        axes.set(xlabel="update", ylabel=label)
        legend(figure, [axes])
        return figure


def estimates_by_update(panels, style, labels, line_name):
    """Means with their intervals against the update, a panel each measure.

    ``panels``: a list of (axis label, [(run, update, Estimate), ...], level); the level is drawn across and named
    ``line_name``. ``labels``: the legend's name of each run.
    """
    with look():
        figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (label, points, level) in zip(grid, panels, strict=True):
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
            axes.set(xlabel="pre-training updates", ylabel=label)
        legend(figure, grid, loc="outside lower center", ncols=3)
        return figure


def across(axes, levels, label):
    """Thin dashed lines at some heights."""
    for level in levels:
        axes.axhline(level, color="#666666", linestyle="--", linewidth=0.8, label=label)


def by_epoch(curves, style, label):
    """A figure of one panel with the epoch below."""
    with look():
        figure, axes = single()
        draw(axes, curves, style)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, [axes])
        return figure


def look():
    """The context in which figures are made and saved: its defaults and :data:`LOOK`, no matter what is set."""
    return matplotlib.style.context(["default", LOOK])


def single():
    """A figure with one panel."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    return figure, figure.subplots()


def draw(axes, curves, style):
    """Draw curves; those of one run (its seeds) are thin lines of one style and have one entry in the legend."""
    seeds, labelled = Counter(curve.run for curve in curves), set()
    for curve in curves:
        thin = {"linewidth": 0.8, "alpha": 0.7} if seeds[curve.run] > 1 else {"linewidth": 1.5}
        every = max(1, len(curve.x) // 12)
        label = "_" if curve.run in labelled else curve.label
        axes.plot(curve.x, curve.y, label=label, markevery=every, markerfacecolor="white", **style[curve.run], **thin)
        labelled.add(curve.run)


def legend(figure, all_axes, loc="outside right upper", ncols=1):
    """One legend beside the panels, an entry a run."""
    entries = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc=loc, ncols=ncols, handlelength=4)


def rendered(figure, kind):
    """The bytes of a figure as ``kind`` "png" or "svg", without date or version."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    buffer = io.BytesIO()
    with look():
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()
