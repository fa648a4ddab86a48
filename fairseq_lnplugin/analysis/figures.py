"""Figures of the analysis commands, as PNG and SVG, in the look of those of study/plots.py.

matplotlib is imported where something is drawn, and nowhere else: measuring does without.
"""

import math

from fairseq_lnplugin.analysis import paper
from fairseq_lnplugin.study.tables import PAPER_MATRICES
from fairseq_lnplugin.study.wording import position_title
from fairseq_lnplugin.whole_file import replacing

COLORS = {"post": "#c2410c", "pre": "#1d4ed8"}
VERDICT_COLORS = {"holds": "#15803d", "FAILS": "#b91c1c", "differs": "#d97706", "undecided": "#d97706"}
MARKERS = {"xavier_uniform": "o", "xavier_normal": "s", "fairseq": "^"}


def gradients(folder, rows):
    """Figure 3 from the rows of gradient_tables.table(): per layer, and by depth. Returns the paths written."""
    return written(folder, "figure3", (11, 8), figure3, [row for row in rows if row["quantity"] == "expected_gradient"])


def theory(folder, checks):
    """Theorem 1's norms against depth and width, and every claim's measured value in its range. Returns the paths written.

    ``checks``: of :mod:`~fairseq_lnplugin.analysis.theory`.
    """
    ranged = [check for check in checks if check.allowed and all(map(math.isfinite, check.allowed))]
    curves = [check.curve for check in checks if check.curve]
    return written(folder, "theory", (15, max(4.5, 0.22 * len(ranged))), theory_panels, curves, ranged)


def written(folder, name, size, draw, *content):
    """A figure of ``size`` inches that ``draw(figure, *content)`` fills, each file whole or not at all; returns their paths."""
    from fairseq_lnplugin.study import plots

    folder.mkdir(parents=True, exist_ok=True)
    with plots.look():
        figure = plots.Figure(figsize=size, layout="constrained")
        draw(figure, *content)
    paths = []
    for kind in ("png", "svg"):
        paths.append(folder / f"{name}.{kind}")
        with replacing(paths[-1]) as new:
            new.write_bytes(plots.rendered(figure, kind))
    return paths


# -- Figure 3 --


def figure3(figure, rows):
    """The four panels of figure 3; ``rows``: those of the expected gradient."""
    axes = figure.subplots(2, 2)
    of_init = [row for row in rows if row["weight_init"] == rows[0]["weight_init"]]
    fewest = min(row["layers"] for row in of_init)
    for axis, (matrix, name), letter in zip(axes[0], PAPER_MATRICES.items(), "ab", strict=True):
        by_layer(axis, [row for row in of_init if (row["layers"], row["matrix"]) == (fewest, matrix)])
        axis.set_title(f"({letter}) {name} of each FFN, {fewest}-{fewest}, {rows[0]['weight_init']}")
    for axis, position, letter in zip(axes[1], ("pre", "post"), "cd", strict=True):
        by_depth(axis, rows, position)
        axis.set_title(f"({letter}) last decoder W2 before training, {position_title(position)}")
    for axis in axes.flat:
        axis.set_ylabel("norm of the expected gradient")
        axis.set_ylim(bottom=0)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=True)  # lines run below it


def by_layer(axis, rows):
    """Panel (a) or (b): one matrix against the layers of encoder and decoder, in models of one init and one depth."""
    layers = rows[0]["layers"]
    for (position, checkpoint, updates, stack), line in by(rows, "ln_position", "checkpoint", "updates", "stack").items():
        shift = 0 if stack == "encoder" else layers
        when = "" if checkpoint is None else f", after {updates} updates\n(checkpoint {checkpoint[:8]})"
        errorbar(
            axis,
            [row["layer"] + shift for row in line],
            line,
            color=COLORS.get(position, "black"),
            linestyle="-" if checkpoint is None else ":",
            marker="o" if checkpoint is None else "x",
            label=f"{position_title(position)}{when}" if stack == "encoder" else None,
        )
    axis.axvline(layers + 0.5, color="grey", linewidth=0.7)
    axis.set_ylim(top=1.3 * axis.get_ylim()[1])  # room for the legend
    axis.set_xticks(range(1, 2 * layers + 1), [f"{side}{n}" for side in "ED" for n in range(1, layers + 1)])
    axis.set_xlabel("layer of encoder E, decoder D")


def by_depth(axis, rows, position):
    """Panel (c) or (d): W2 of the decoder's last layer before training against the number of layers, a line an init.

    ``rows``: of all models. The first init stands out, and a line for what the paper has begins at its smallest depth.
    """
    depths = sorted({row["layers"] for row in rows})
    first = rows[0]["weight_init"]
    place = (position, None, "decoder", "fc2.weight")
    last_w2 = [
        row
        for row in rows
        if (row["ln_position"], row["checkpoint"], row["stack"], row["matrix"]) == place and row["layer"] == row["layers"]
    ]
    for (weight_init,), line in by(last_w2, "weight_init").items():
        errorbar(
            axis,
            [row["layers"] for row in line],
            line,
            color=COLORS[position],
            marker=MARKERS[weight_init],
            alpha=1 if weight_init == first else 0.5,
            label=weight_init,
        )
    start = next((row["norm"] for row in last_w2 if (row["weight_init"], row["layers"]) == (first, depths[0])), None)
    if position == "post":
        axis.axhline(paper.POST_LN, color="grey", linestyle="--", label=f"the paper's figure, about {paper.POST_LN:g}")
    elif start is not None:
        norms = [start * (depth / depths[0]) ** paper.PRE_EXPONENT for depth in depths]
        axis.plot(depths, norms, "--", color="grey", label="layers^(-1/2)")
    axis.set_xticks(depths, [f"{depth}-{depth}" for depth in depths])
    axis.set_xlabel("layers")


def by(rows, *names):
    """Rows by the values of some columns, in the order in which they come."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


# -- The theory --


def theory_panels(figure, curves, ranged):
    """Theorem 1's norms against depth and width, and the claims that have a range with two ends."""
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    by_size(axes[0], [curve for curve in curves if curve.x == "L"], "number of layers L")
    by_size(axes[1], [curve for curve in curves if curve.x == "d"], "width d")
    in_range(axes[2], ranged)


def by_size(axis, curves, name):
    """Theorem 1: the norm of the last W2's gradient against one size of the model; ``curves``: of :class:`theory.Curve`."""
    axis.set(xscale="log", yscale="log", xlabel=name, ylabel="norm of the last W2's gradient", title=f"theorem 1, {name}")
    for position, x, points in curves:
        rows = [{"norm": estimate.value, "low": estimate.low, "high": estimate.high} for estimate in points.values()]
        errorbar(axis, list(points), rows, color=COLORS[position], marker="o", label=position_title(position))
        if (x, position) == ("L", "pre"):
            last = max(points)
            norms = [points[last].value * (value / last) ** paper.PRE_EXPONENT for value in points]
            axis.plot(list(points), norms, "--", color="grey", label="L^(-1/2)")
        axis.set_xticks(list(points), [str(value) for value in points])
    if curves:
        axis.minorticks_off()
        axis.legend(fontsize=8, frameon=True)  # lines run below it


def in_range(axis, checks):
    """Each check's interval, in units of half the range that its claim allows."""
    for row, check in enumerate(reversed(checks)):
        low, high = check.allowed
        middle, half = (low + high) / 2, (high - low) / 2
        ends = [(check.measured.low - middle) / half, (check.measured.high - middle) / half]
        color = VERDICT_COLORS[check.verdict]
        axis.plot([max(-2, min(2, end)) for end in ends], [row, row], color=color, linewidth=3, solid_capstyle="butt")
        at = (check.measured.value - middle) / half
        # what lies beyond the panel is an arrow at its edge
        axis.plot(max(-1.95, min(1.95, at)), row, "|" if abs(at) < 2 else "<" if at < 0 else ">", color=color, markersize=5)
    axis.axvspan(-1, 1, color="grey", alpha=0.15)
    axis.set_yticks(range(len(checks)), [check_label(check) for check in reversed(checks)], fontsize=6)
    axis.set(xlim=(-2, 2), xlabel="95 % interval; grey: the range that the claim allows; arrow: beyond", title="claims")


def check_label(check):
    """A claim's item and as much of it as a row has room for, its beginning and its end."""
    claim = check.claim if len(check.claim) <= 60 else f"{check.claim[:38]} ... {check.claim[-18:]}"
    return f"{check.item}: {claim}"


def errorbar(axis, x, rows, **style):
    """Norms with their intervals."""
    norms = [row["norm"] for row in rows]
    ends = [[0 if math.isnan(row["low"]) else row["norm"] - row["low"] for row in rows]]
    ends.append([0 if math.isnan(row["high"]) else row["high"] - row["norm"] for row in rows])
    axis.errorbar(x, norms, yerr=ends, capsize=2, linewidth=1.2, markersize=4, **style)
