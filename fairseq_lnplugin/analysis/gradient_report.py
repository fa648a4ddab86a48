"""What ``fairseq-ln gradients`` writes: figure3.tsv, figure3.json, RESULTS.md and figures, from measurements alone.

A *measurement* is one line of measurements.jsonl (see :mod:`~fairseq_lnplugin.analysis.expected_gradient`), a *group* all of them
that differ in the seed only.
"""

import json
import math
from collections import defaultdict
from typing import NamedTuple

from fairseq_lnplugin.analysis import figures, intervals
from fairseq_lnplugin.whole_file import replacing

QUANTITIES = ("expected_gradient", "batch_gradient")
COLUMNS = "weight_init ln_position layers stack layer matrix quantity norm low high seeds batches".split()
MATRICES = {"fc1.weight": "W1", "fc2.weight": "W2"}
TITLES = {"post": "Post-LN", "pre": "Pre-LN"}
#: Figure 3 (c, d): the norm that the paper's figure shows for Post-LN at every depth, and theorem 1's exponents in the depth.
PAPER_POST_LN = 1.6
PAPER_EXPONENTS = {"post": 0.0, "pre": -0.5}
#: What figure 3 (a, b) shows, before training and after the warm-up stage.
PAPER_LAYERS = {("post", False): "grows towards the output", ("pre", False): "flat", ("post", True): "very small everywhere"}
#: (epsilon, delta) of the paper's hidden states.
PAPER_BOUND = (0.1, 0.125)


class Group(NamedTuple):
    """What one row of a table is about; ``updates`` is None before training."""

    weight_init: str
    ln_position: str
    layers: int
    updates: int | None

    @property
    def title(self):
        """For tables and legends."""
        when = "" if self.updates is None else f", after {self.updates} updates"
        return f"{TITLES.get(self.ln_position, self.ln_position)}, {self.layers}-{self.layers}{when}"


def write(out, records, facts):
    """Write all files of the report into the folder ``out``, each whole or not at all.

    ``records``: measurements; ``facts``: what the report says of data, rates and machine.
    """
    groups = grouped(records)
    batches = records[0]["shared"]["batches"]
    rows = table(groups, batches)
    initial = [row for row in rows if row["updates"] is None]
    trained = [row for row in rows if row["updates"] is not None]
    if initial:
        write_text(out / "figure3.tsv", tsv(COLUMNS, initial))
    if trained:
        write_text(out / "figure3_trained.tsv", tsv(["updates", *COLUMNS], trained))
    write_text(out / "figure3.json", json_text(as_json(groups, records, rows, facts)))
    drawn = figures.gradients(out / "figures", rows)
    write_text(out / "RESULTS.md", markdown(groups, records, rows, facts, drawn))


def write_text(path, text):
    """Write a text file whole or not at all."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def grouped(records):
    """Measurements by :class:`Group`, sorted; what the same unit was measured twice counts once."""
    groups, seen = defaultdict(list), set()
    for record in records:
        unit = record["unit"]
        key = json.dumps(unit, sort_keys=True)
        if key in seen:
            continue
        seen.add(key)
        updates = unit["checkpoint"] and unit["checkpoint"]["updates"]
        groups[Group(unit["weight_init"], unit["ln_position"], unit["layers"], updates)].append(record)
    order = {"xavier_uniform": 0, "xavier_normal": 1, "fairseq": 2}
    return dict(
        sorted(
            groups.items(),
            key=lambda item: (item[0].updates or -1, order.get(item[0].weight_init, 9), item[0].layers, item[0][1]),
        )
    )


def table(groups, batches):
    """One dict for each group, matrix and quantity: :data:`COLUMNS` and ``updates``."""
    rows = []
    for group, records in groups.items():
        for number, matrix in enumerate(records[0]["matrices"]):
            for quantity in QUANTITIES:
                norm, low, high = intervals.mean([record["matrices"][number][quantity] for record in records])
                rows.append(
                    group._asdict()
                    | {name: matrix[name] for name in ("stack", "layer", "matrix")}
                    | {"quantity": quantity, "norm": norm, "low": low, "high": high, "seeds": len(records), "batches": batches}
                )
    return rows


def tsv(columns, rows):
    """A table as text; empty where one seed gives no interval."""
    lines = ["\t".join(columns)]
    lines += ["\t".join(cell(row[column]) for column in columns) for row in rows]
    return "\n".join(lines) + "\n"


def cell(value):
    """A value of a table."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def last_w2(records, quantity):
    """The values, one a seed, of W2 in the decoder's last layer."""
    return [record["matrices"][-1][quantity] for record in records]


def depth_exponents(groups):
    """Exponent of the last W2's norm in the number of layers: ``{(weight_init, ln_position, quantity): Estimate}``."""
    found = {}
    for weight_init, position in dict.fromkeys((group.weight_init, group.ln_position) for group in groups):
        of_these = [
            (group.layers, records)
            for group, records in groups.items()
            if (group.weight_init, group.ln_position, group.updates) == (weight_init, position, None)
        ]
        if len({layers for layers, _ in of_these}) < 2:
            continue
        for quantity in QUANTITIES:
            points = [(layers, value) for layers, records in of_these for value in last_w2(records, quantity)]
            found[weight_init, position, quantity] = intervals.exponent(*zip(*points, strict=True))
    return found


def layer_factors(records, stack, matrix):
    """The factor by which the expected gradient's norm grows from a layer to the next, from a line through its logarithms."""
    points = [
        (row["layer"], math.log(row["expected_gradient"]))
        for record in records
        for row in record["matrices"]
        if row["stack"] == stack and row["matrix"] == matrix
    ]
    if len({layer for layer, _ in points}) < 2:
        return intervals.Estimate(math.nan, math.nan, math.nan)
    return intervals.Estimate(*(math.exp(value) for value in intervals.slope(*zip(*points, strict=True))))


def as_json(groups, records, rows, facts):
    """Everything the report holds; the values of each seed are in measurements.jsonl."""
    exponents = [
        {"weight_init": weight_init, "ln_position": position, "quantity": quantity} | finite(estimate._asdict())
        for (weight_init, position, quantity), estimate in depth_exponents(groups).items()
    ]
    hidden = [group._asdict() | row for group, of_group in groups.items() for row in hidden_rows(of_group)]
    return {
        "settings": records[0]["shared"],
        "facts": facts,
        "rows": [finite(row) for row in rows],
        "exponents_in_depth": exponents,
        "hidden_states": [finite(row) for row in hidden],
    }


def json_text(values):
    """The values as JSON, a row of a table on each line; numbers have six digits, as in the tsv."""
    parts = []
    for name, value in values.items():
        if isinstance(value, list):
            rows = ",\n  ".join(json.dumps({key: shortened(one) for key, one in row.items()}, allow_nan=False) for row in value)
            text = f"[\n  {rows}\n ]" if value else "[]"
        else:
            text = json.dumps(value, allow_nan=False)
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def shortened(value):
    """A number with the digits that a table shows."""
    return float(cell(value)) if isinstance(value, float) else value


def finite(row):
    """A dict with None in the place of NaN, which JSON has no word for."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}


def hidden_rows(records):
    """The spread of hidden states of a group, means over its seeds, layer by layer."""
    for number, row in enumerate(records[0]["hidden"]):
        values = {name: [record["hidden"][number][name] for record in records] for name in ("mean", "epsilon", "delta")}
        yield {"stack": row["stack"], "layer": row["layer"]} | {name: sum(v) / len(v) for name, v in values.items()}


# -- Markdown --


def markdown(groups, records, rows, facts, drawn):
    """The report."""
    shared, data, made = records[0]["shared"], facts["data"], facts["environment"]
    seeds = ", ".join(map(str, sorted({record["unit"]["seed"] for record in records})))
    lines = [
        "# Figure 3: gradient norms of the FFN matrices",
        "",
        f"`fairseq-ln gradients`: {shared['arch']}, {shared['compute_dtype']} products, dropout {shared['dropout']}, "
        f"{shared['batches']} mini-batches of at most {shared['max_tokens']} tokens from `{data['subset']}` ({data['pairs']:,} "
        f"pairs, {data['languages']}, {data['types'][0]:,} and {data['types'][1]:,} types), {sum(map(len, groups.values()))} "
        f"models in {sum(record['seconds'] for record in records) / 60:.0f} minutes, all processes together, on "
        f"{made['device']}; seeds {seeds}; written at commit {written_at(made)}, torch {made['torch']}.",
        "",
        "Unit: Frobenius norm of the gradient of the loss per target token, in nats, with label smoothing "
        f"{shared['label_smoothing']} as in training. *Expected gradient*: element-wise mean over the mini-batches, then the "
        "norm (the paper's). *Batch gradient*: the mean of the mini-batches' own norms, another quantity. Brackets: 95 % "
        "interval (Student's t) over seeds; a seed changes the initial weights, the mini-batches and the dropout.",
        "",
    ]
    lines += training_section(groups)
    lines += depth_section(groups)
    lines += layer_section(groups)
    lines += hidden_section(groups)
    lines += update_section(groups, facts)
    if drawn:
        lines += ["## Figures", "", *(f"![{path.stem}](figures/{path.name})" for path in drawn if path.suffix == ".png"), ""]
    return "\n".join(lines)


def training_section(groups):
    """How the checkpoints among the models were trained."""
    lines = []
    for group, records in groups.items():
        if group.updates is None:
            continue
        words = {}  # one group may hold several checkpoints
        for record in records:
            training = record["unit"]["checkpoint"].get("training", {})
            words[", ".join(f"{name.replace('_', ' ')} {value}" for name, value in training.items()) or "not known"] = True
        lines.append(f"- {group.title}, `{group.weight_init}`, was trained with: {'; '.join(words)}.")
    return [*lines, ""] if lines else []


def written_at(environment):
    """The commit of study.environment.environment(), marked where files differed from it."""
    return f"{environment['commit'] or 'unknown'}{' with changes' if environment['dirty'] else ''}"


def depth_section(groups):
    """Figure 3 (c, d)."""
    initial = {group: records for group, records in groups.items() if group.updates is None}
    if not initial:
        return []
    lines = [
        "## Figure 3 (c, d): W2 of the decoder's last layer, before training",
        "",
        "| weight init | position | layers | expected gradient | batch gradient | expected, unbiased | paper | ours / paper | "
        "seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    widest = {}
    for group, records in initial.items():
        expected = intervals.mean(last_w2(records, "expected_gradient"))
        unbiased = [value for value in last_w2(records, "unbiased_gradient") if value is not None]
        half = (expected.high - expected.low) / 2 / expected.value
        if not math.isnan(half):
            widest[group.weight_init] = max(widest.get(group.weight_init, 0.0), half)
        post = group.ln_position == "post"
        lines.append(
            f"| {group.weight_init} | {TITLES.get(group.ln_position, group.ln_position)} | {group.layers}-{group.layers} | "
            f"{bracket(expected)} | {bracket(intervals.mean(last_w2(records, 'batch_gradient')))} | "
            f"{f'{sum(unbiased) / len(unbiased):.3f}' if unbiased else '-'} | "
            f"{f'about {PAPER_POST_LN}' if post else 'falls with depth'} | "
            f"{f'{expected.value / PAPER_POST_LN:.2f}' if post else '-'} | {len(records)} |"
        )
    lines += [
        "",
        "*Unbiased*: what the expected gradient would come to with ever more mini-batches; the mean over N still holds 1/N of "
        "the mini-batches' variance."
        + "".join(f" `{name}`: the widest interval is +-{100 * half:.1f} % of its mean." for name, half in widest.items()),
        "",
    ]
    exponents = depth_exponents(groups)
    if exponents:
        lines += [
            "Exponent b of norm = a layers^b (slope in log-log), all seeds:",
            "",
            "| weight init | position | quantity | exponent | theorem 1, as a bound | difference |",
            "|---|---|---|---|---|---|",
        ]
        for (weight_init, position, quantity), estimate in exponents.items():
            expected = PAPER_EXPONENTS.get(position)
            lines.append(
                f"| {weight_init} | {TITLES.get(position, position)} | {quantity.replace('_', ' ')} | {bracket(estimate)} "
                + (f"| {expected:g} | {estimate.value - expected:+.3f} |" if expected is not None else "| - | - |")
            )
        lines.append("")
    for weight_init in dict.fromkeys(group.weight_init for group in initial):
        lines += depth_sentences(weight_init, initial, exponents)
    return lines


def depth_sentences(weight_init, initial, exponents):
    """Where the numbers of one init differ from the paper's, in words."""
    of_init = {group: records for group, records in initial.items() if group.weight_init == weight_init}
    lines = []
    post = [
        intervals.mean(last_w2(records, "expected_gradient")).value for group, records in of_init.items() if group[1] == "post"
    ]
    if post:
        far = max(post, key=lambda value: abs(math.log(value / PAPER_POST_LN)))
        lines.append(
            f"- `{weight_init}`, Post-LN: {min(post):.2f} to {max(post):.2f} over the depths, the paper's figure about "
            f"{PAPER_POST_LN}; the farthest is {100 * (far / PAPER_POST_LN - 1):+.0f} % away."
        )
    if (weight_init, "pre", "expected_gradient") in exponents:
        estimate = exponents[weight_init, "pre", "expected_gradient"]
        if math.isnan(estimate.low):
            words = "has no interval, with one value at each of two depths"
        else:
            words = f"-0.5 is {'inside' if estimate.low <= -0.5 <= estimate.high else 'outside'} its interval"
            words += f", 0 is {'inside' if estimate.low <= 0 <= estimate.high else 'outside'}"
        lines.append(f"- `{weight_init}`, Pre-LN: exponent {bracket(estimate)} in the number of layers; {words}.")
    return [*lines, ""] if lines else []


def layer_section(groups):
    """Figure 3 (a, b), for the shallowest models of each kind."""
    lines = ["## Figure 3 (a, b): layer by layer", ""]
    shown = shallowest(groups)
    for matrix, name in MATRICES.items():
        lines += [
            f"Expected gradient of {name}, from the layer next to the input to the one next to the output:",
            "",
            "| weight init | model | stack | layers 1, 2, ... | factor a layer | paper |",
            "|---|---|---|---|---|---|",
        ]
        for group, records in shown.items():
            for stack in ("encoder", "decoder"):
                means = [
                    intervals.mean([record["matrices"][number]["expected_gradient"] for record in records]).value
                    for number, row in enumerate(records[0]["matrices"])
                    if (row["stack"], row["matrix"]) == (stack, matrix)
                ]
                lines.append(
                    f"| {group.weight_init} | {group.title} | {stack} | {', '.join(f'{value:.3f}' for value in means)} | "
                    f"{bracket(layer_factors(records, stack, matrix))} | "
                    f"{PAPER_LAYERS.get((group.ln_position, group.updates is not None), '-')} |"
                )
        lines.append("")
    lines += [
        "A factor above 1 grows towards the output, 1 is flat. All depths, matrices and intervals: figure3.tsv, figure3.json.",
        "",
    ]
    return lines


def shallowest(groups):
    """Of each init, position and number of updates the group with the fewest layers."""
    chosen = {}
    for group in sorted(groups, key=lambda group: group.layers):
        chosen.setdefault((group.weight_init, group.ln_position, group.updates), group)
    return {group: records for group, records in groups.items() if group in chosen.values()}


def hidden_section(groups):
    """Hidden states and (epsilon, delta)."""
    epsilon, delta = PAPER_BOUND
    lines = [
        "## Hidden states: is their squared norm near its mean?",
        "",
        "Z = ||x||^2 at real tokens, x the residual sum after a layer's FFN (Post-LN: x^post,5, before its last LN). The paper: "
        f"({epsilon}, {delta})-bounded, P[(Z - EZ) / EZ <= epsilon] >= 1 - delta. Shown is the layer where it is worst.",
        "",
        f"| weight init | model | EZ / d, first and last encoder layer | decoder | smallest epsilon at delta = {delta} | delta "
        f"at epsilon = {epsilon} | bounded as the paper's? |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, records in groups.items():
        rows = list(hidden_rows(records))
        means = {stack: [row["mean"] for row in rows if row["stack"] == stack] for stack in ("encoder", "decoder")}
        worst = max(rows, key=lambda row: row["epsilon"])
        highest = max(rows, key=lambda row: row["delta"])
        lines.append(
            f"| {group.weight_init} | {group.title} "
            + "".join(f"| {means[stack][0]:.2f}, {means[stack][-1]:.2f} " for stack in means)
            + f"| {worst['epsilon']:.3f} ({worst['stack']} {worst['layer']}) "
            f"| {highest['delta']:.3f} ({highest['stack']} {highest['layer']}) | "
            f"{'yes' if worst['epsilon'] <= epsilon else 'no'} |"
        )
    return [*lines, ""]


def update_section(groups, facts):
    """Relative size of one update at lr_max, layer by layer."""
    lr_sgd, lr_adam = facts["lr_sgd"], facts["lr_adam"]
    lines = [
        '## A second look at "needs warm-up": the size of an update at lr_max',
        "",
        "||change of W|| / ||W|| in per cent for one update without warm-up, worked out from the gradients measured here, "
        f"weights held still: SGD with lr {lr_sgd:g} (lr times the batch gradient); Adam with lr {lr_adam:g}, its first update "
        "(every entry moves by about lr, whatever the gradient), and *later*, once its moments have averaged over mini-batches.",
        "",
        "| weight init | model | stack | matrix | SGD, layers 1, 2, ... | Adam, first update | Adam, later |",
        "|---|---|---|---|---|---|---|",
    ]
    last = {}
    for group, records in shallowest(groups).items():
        for stack in ("encoder", "decoder"):
            for matrix, name in MATRICES.items():
                sizes = {"sgd": [], "adam_first": [], "adam_still": []}
                for number, row in enumerate(records[0]["matrices"]):
                    if (row["stack"], row["matrix"]) == (stack, matrix):
                        for kind, values in relative_updates(
                            [record["matrices"][number] for record in records], lr_sgd, lr_adam
                        ).items():
                            sizes[kind].append(values)
                last[group] = {kind: values[-1] for kind, values in sizes.items()}
                lines.append(
                    f"| {group.weight_init} | {group.title} | {stack} | {name} | "
                    + " | ".join(
                        ", ".join("-" if value is None else f"{100 * value:.3g}" for value in values) for values in sizes.values()
                    )
                    + " |"
                )
    lines += ["", "In the decoder's last W2, as measured:", ""]
    for group, sizes in last.items():
        later = "not measured with one mini-batch" if sizes["adam_still"] is None else f"{100 * sizes['adam_still']:.3g} %"
        lines.append(
            f"- {group.title}, `{group.weight_init}`: an SGD update would change it by {100 * sizes['sgd']:.3g} %, Adam's first "
            f"by {100 * sizes['adam_first']:.3g} %, a later one by {later}."
        )
    lines += [
        "",
        "These numbers say how far one update goes at the point where the gradients were measured. They do not say whether "
        "training from there succeeds; the runs of recipes/iwslt14.sh do.",
        "",
    ]
    return lines


def relative_updates(rows, lr_sgd, lr_adam):
    """Mean over seeds of ||change|| / ||W|| for one matrix; ``rows``: its values, one dict a seed."""
    count = len(rows)
    sizes = {
        "sgd": sum(lr_sgd * row["batch_gradient"] / row["weight"] for row in rows) / count,
        "adam_first": sum(lr_adam * row["adam_first"] / row["weight"] for row in rows) / count,
    }
    still = [row["adam_still"] for row in rows]
    sizes["adam_still"] = None if None in still else sum(lr_adam * row["adam_still"] / row["weight"] for row in rows) / count
    return sizes


def bracket(estimate):
    """``1.372 [1.35, 1.40]``; without an interval where there is none."""
    value, low, high = estimate
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")
