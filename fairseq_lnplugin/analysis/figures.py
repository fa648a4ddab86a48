"""Figures of the analysis commands, as PNG and SVG. matplotlib is imported where something is drawn, and nowhere else."""

import math

from fairseq_lnplugin.study.wording import position_title
from fairseq_lnplugin.whole_file import replacing

COLOURS = {"post": "#c2410c", "pre": "#1d4ed8"}
VERDICT_COLOURS = {"holds": "#15803d", "FAILS": "#b91c1c", "differs": "#d97706", "undecided": "#d97706"}
MARKERS = {"xavier_uniform": "o", "xavier_normal": "s", "fairseq": "^"}


def gradients(folder, rows):
    """Figure 3 from the rows of gradient_tables.table(): per layer, and by depth. Returns the paths written."""
    expected = [row for row in rows if row["quantity"] == "expected_gradient"]
    inits = list(dict.fromkeys(row["weight_init"] for row in expected))
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    fewest = min(row["layers"] for row in expected if row["weight_init"] == inits[0])
    for axis, matrix, name in zip(axes[0], ("fc1.weight", "fc2.weight"), ("W1", "W2"), strict=True):
        for key, of_key in by(
            [row for row in expected if row["matrix"] == matrix and row["layers"] == fewest and row["weight_init"] == inits[0]],
            "ln_position",
            "checkpoint",
            "updates",
            "stack",
        ).items():
            position, checkpoint, updates, stack = key
            shift = 0 if stack == "encoder" else fewest
            when = "" if checkpoint is None else f", after {updates} updates\n(checkpoint {checkpoint[:8]})"
            errorbar(
                axis,
                [row["layer"] + shift for row in of_key],
                of_key,
                color=COLOURS.get(position, "black"),
                linestyle="-" if checkpoint is None else ":",
                marker="o" if checkpoint is None else "x",
                label=f"{position_title(position)}{when}" if stack == "encoder" else None,
            )
        axis.axvline(fewest + 0.5, color="grey", linewidth=0.7)
        axis.set_ylim(top=1.3 * axis.get_ylim()[1])  # room for the legend
        axis.set_xticks(range(1, 2 * fewest + 1), [f"{side}{n}" for side in "ED" for n in range(1, fewest + 1)])
        axis.set(
            title=f"{'(a)' if name == 'W1' else '(b)'} {name} of each FFN, {fewest}-{fewest}, {inits[0]}",
            xlabel="layer of encoder E, decoder D",
        )
    depths = sorted({row["layers"] for row in expected})
    for axis, position, letter in ((axes[1][0], "pre", "(c)"), (axes[1][1], "post", "(d)")):
        for weight_init in inits:
            of_init = [
                row
                for row in expected
                if (row["weight_init"], row["ln_position"], row["checkpoint"], row["stack"], row["matrix"])
                == (weight_init, position, None, "decoder", "fc2.weight")
                and row["layer"] == row["layers"]
            ]
            if of_init:
                errorbar(
                    axis,
                    [row["layers"] for row in of_init],
                    of_init,
                    color=COLOURS[position],
                    marker=MARKERS.get(weight_init, "o"),
                    alpha=1 if weight_init == inits[0] else 0.5,
                    label=weight_init,
                )
        if position == "post":
            axis.axhline(1.6, color="grey", linestyle="--", label="the paper's figure, about 1.6")
        elif of_init_reference(expected, inits[0], depths):
            start = of_init_reference(expected, inits[0], depths)
            axis.plot(
                depths, [start * (depth / depths[0]) ** -0.5 for depth in depths], "--", color="grey", label="layers^(-1/2)"
            )
        axis.set_xticks(depths, [f"{depth}-{depth}" for depth in depths])
        axis.set(title=f"{letter} last decoder W2 before training, {position_title(position)}", xlabel="layers")
    for axis in axes.flat:
        axis.set_ylabel("norm of the expected gradient")
        axis.set_ylim(bottom=0)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return save(figure, folder, "figure3")


def theory(folder, checks):
    """Theorem 1's norms against depth and width, and every claim's measured value in its range. Returns the paths written.

    ``checks``: of :mod:`~fairseq_lnplugin.analysis.theory`.
    """
    plt = pyplot()
    ranged = [check for check in checks if check.allowed and all(map(math.isfinite, check.allowed))]
    figure, axes = plt.subplots(1, 3, figsize=(15, max(4.5, 0.22 * len(ranged))), width_ratios=(1, 1, 1.3))
    curves = [check.curve for check in checks if check.curve]
    for axis, x, name in zip(axes, "Ld", ("number of layers L", "width d"), strict=False):
        for position, _, points in (curve for curve in curves if curve.x == x):
            rows = [{"norm": estimate.value, "low": estimate.low, "high": estimate.high} for estimate in points.values()]
            errorbar(axis, list(points), rows, color=COLOURS[position], marker="o", label=position_title(position))
            if x == "L" and position == "pre":
                last = max(points)
                reference = [points[last].value * (value / last) ** -0.5 for value in points]
                axis.plot(list(points), reference, "--", color="grey", label="L^(-1/2)")
        axis.set(xscale="log", yscale="log", xlabel=name, ylabel="norm of the last W2's gradient", title=f"theorem 1, {name}")
        if axis.get_legend_handles_labels()[0]:
            axis.set_xticks(list(points), [str(value) for value in points])
            axis.minorticks_off()
            axis.legend(fontsize=8)
    for row, check in enumerate(reversed(ranged)):
        low, high = check.allowed
        middle, half = (low + high) / 2, (high - low) / 2
        ends = [(check.measured.low - middle) / half, (check.measured.high - middle) / half]
        colour = VERDICT_COLOURS[check.verdict]
        axes[2].plot([max(-2, min(2, end)) for end in ends], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        at = (check.measured.value - middle) / half
        # what lies beyond the panel is an arrow at its edge
        axes[2].plot(max(-1.95, min(1.95, at)), row, "|" if abs(at) < 2 else "<" if at < 0 else ">", color=colour, markersize=5)
    axes[2].axvspan(-1, 1, color="grey", alpha=0.15)
    axes[2].set_yticks(range(len(ranged)), [check_label(check) for check in reversed(ranged)], fontsize=6)
    axes[2].set(xlim=(-2, 2), xlabel="95 % interval; grey: the range that the claim allows; arrow: beyond", title="claims")
    return save(figure, folder, "theory")


def check_label(check):
    """A claim's item and as much of it as a row has room for, its beginning and its end."""
    claim = check.claim if len(check.claim) <= 60 else f"{check.claim[:38]} ... {check.claim[-18:]}"
    return f"{check.item}: {claim}"


def of_init_reference(rows, weight_init, depths):
    """Pre-LN's norm at the smallest depth, where the reference line of theorem 1 starts; None if it was not measured."""
    wanted = (weight_init, "pre", None, "decoder", "fc2.weight", depths[0], depths[0])
    names = ("weight_init", "ln_position", "checkpoint", "stack", "matrix", "layers", "layer")
    return next((row["norm"] for row in rows if tuple(row[name] for name in names) == wanted), None)


def by(rows, *names):
    """Rows by the values of some columns, in the order in which they come."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def errorbar(axis, x, rows, **style):
    """Norms with their intervals."""
    norms = [row["norm"] for row in rows]
    ends = [[0 if math.isnan(row["low"]) else row["norm"] - row["low"] for row in rows]]
    ends.append([0 if math.isnan(row["high"]) else row["high"] - row["norm"] for row in rows])
    axis.errorbar(x, norms, yerr=ends, capsize=2, linewidth=1.2, markersize=4, **style)


def pyplot():
    """Matplotlib's pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fairseq_lnplugin"  # so that the same figure is the same file
    import matplotlib.pyplot as plt

    return plt


def save(figure, folder, name):
    """The figure as PNG and SVG, each whole or not at all; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        path = folder / f"{name}.{kind}"
        with replacing(path) as new:
            figure.savefig(new, format=kind, dpi=110, metadata=metadata)
        paths.append(path)
    pyplot().close(figure)
    return paths
