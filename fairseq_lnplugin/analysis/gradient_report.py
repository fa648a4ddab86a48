"""What ``fairseq-ln gradients`` writes: figure3.tsv, figure3.json, RESULTS.md and figures, from measurements alone.

Numbers come from gradient_tables.py, verdicts from gradient_claims.py; here they become files.
"""

import itertools
import json
import math
import shlex
from collections import defaultdict

from fairseq_lnplugin.analysis import figures, gradient_claims, paper
from fairseq_lnplugin.analysis import gradient_tables as tables
from fairseq_lnplugin.analysis.gradient_claims import bracket
from fairseq_lnplugin.study import intervals
from fairseq_lnplugin.study import tables as study_tables
from fairseq_lnplugin.study.wording import count, distinct, position_title
from fairseq_lnplugin.transformer_ln_study import STACKS, as_flag
from fairseq_lnplugin.whole_file import write_text

COLUMNS = "weight_init ln_position layers stack layer matrix quantity norm low high seeds batches".split()
#: Of ``--batches``.
DEFAULT_BATCHES = 16


def write(out, records, facts):
    """Write all files of the report into the folder ``out``, each whole or not at all.

    ``records``: measurements; ``facts``: what the report says of data, rates and machine.

    Raises:
        OSError: a file cannot be written.

    """
    groups = tables.grouped(records)
    batches = records[0]["shared"]["batches"]
    rows = tables.table(groups, batches)
    initial = [row for row in rows if row["checkpoint"] is None]
    trained = [row for row in rows if row["checkpoint"] is not None]
    if initial:
        write_text(out / "figure3.tsv", tsv(COLUMNS, initial))
    if trained:
        write_text(out / "figure3_trained.tsv", tsv(["updates", "checkpoint", *COLUMNS], trained))
    write_text(out / "figure3.json", json_text(as_json(groups, records, rows, facts)))
    drawn = figures.gradients(out / "figures", rows)
    write_text(out / "RESULTS.md", markdown(groups, records, facts, drawn))


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


def as_json(groups, records, rows, facts):
    """Everything the report holds; the values of each seed are in measurements.jsonl."""
    exponents = [
        {"weight_init": weight_init, "ln_position": position, "quantity": quantity}
        | finite(exponent.estimate._asdict())
        | {"seeds": exponent.seeds}
        for (weight_init, position, quantity), exponent in tables.depth_exponents(groups).items()
    ]
    hidden = [group._asdict() | row for group, of_group in groups.items() for row in hidden_rows(of_group)]
    return {
        "settings": records[0]["shared"],
        "facts": facts,
        "claims": [
            {"where": claim.where, "statement": claim.statement} | finding._asdict()
            for claim in gradient_claims.claims(groups)
            for finding in claim.findings
        ],
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
    """The spread of hidden states of a group, means over its seeds and the interval of ``delta``, layer by layer."""
    means = {name: tables.by_layer(records, "hidden", name) for name in ("mean", "epsilon")}
    for (stack, layer), delta in tables.by_layer(records, "hidden", "delta", intervals.share).items():
        values = {name: of_name[stack, layer].value for name, of_name in means.items()}
        ends = {"delta": delta.value, "delta_low": delta.low, "delta_high": delta.high}
        yield {"stack": stack, "layer": layer} | values | ends


# -- Markdown --


def markdown(groups, records, facts, drawn):
    """The report."""
    shared, data, made = records[0]["shared"], facts["data"], facts["environment"]
    differences = not_the_papers(groups, shared, data)
    lines = [
        f"# Figure 3: gradient norms of the FFN matrices, {data['name']}, {pairs_words(data)}",
        "",
        *(
            [f"> **No reproduction**: what was measured differs from the paper's ({'; '.join(differences)}).", ""]
            if differences
            else []
        ),
        f"`fairseq-ln gradients`: {shared['arch']}, {shared['compute_dtype']} products, dropout {shared['dropout']}, "
        f"{shared['batches']} mini-batches of at most {shared['max_tokens']} tokens from {data_words(data)}, "
        f"{sum(map(len, groups.values()))} models in {sum(record['seconds'] for record in records) / 60:.0f} minutes, all "
        f"processes together; {measured_with(records)}; written at commit {study_tables.commit(made) or 'unknown'}. The commands "
        "that measure the same stand at the end.",
        "",
        "Unit: Frobenius norm of the gradient of the loss per target token, in nats, with label smoothing "
        f"{shared['label_smoothing']} as in training. *Expected gradient*: element-wise mean over the mini-batches, then the "
        "norm (the paper's). *Batch gradient*: the mean of the mini-batches' own norms, another quantity. Brackets: 95 % "
        "interval (Student's t) over seeds, one value a seed; a factor and an exponent are means of those of each seed's own "
        "line. A seed changes the initial weights, the mini-batches and the dropout; of a checkpoint, which has its weights, "
        "the mini-batches and the dropout only.",
        "",
    ]
    lines += claims_section(groups)
    lines += depth_section(groups)
    lines += layer_section(groups)
    lines += training_section(groups)
    lines += hidden_section(groups)
    lines += update_section(groups, facts)
    lines += ["## Commands", "", "DATA is the folder of the data, OUT that of the report.", ""]
    lines += ["```text", *commands(groups, shared), "```", ""]
    if drawn:
        lines += ["## Figures", "", *(f"![{path.stem}](figures/{path.name})" for path in drawn if path.suffix == ".png"), ""]
    return "\n".join(lines)


def measured_with(records):
    """Commits, torch and devices of the measurements; older ones did not keep them."""
    kept = [record["measured_with"] for record in records if "measured_with" in record]
    words = [f"{name} {', '.join(distinct(each[name] for each in kept))}" for name in ("torch", "device") if kept]
    commits = distinct(f"commit {study_tables.commit(each) or 'unknown'}" for each in kept)
    commits += ["a commit that was not kept"] * (len(kept) < len(records))
    return ", ".join([f"measured at {' and '.join(commits)}", *words])


def study_settings(data):
    """A part of a data folder as study/tables.py takes it."""
    return {"data": data["name"], "pairs": str(data["pairs"])}


def pairs_words(data):
    """``40,653 of 160,239 pairs``; of how many is said of the training part of a corpus of the paper's."""
    return study_tables.pairs_text([study_settings(data)]) if data["subset"] == "train" else count(data["pairs"], "pair")


def data_words(data):
    """Name, part and size of the data, for a sentence."""
    types = " and ".join(f"{types:,}" for types in data["types"])
    return f"`{data['subset']}` of {data['name']} ({pairs_words(data)}, {data['languages']}, {types} types)"


def not_the_papers(groups, shared, data):
    """What makes these measurements others than the paper's, as a list of phrases; [] for nothing."""
    settings = study_settings(data)
    corpus = study_tables.corpus(settings)
    phrases = []
    if corpus is None or data["subset"] != "train":
        phrases.append(f"other data ({data['subset']} of {data['name']})")
    elif study_tables.is_part(settings):
        phrases.append(pairs_words(data))
    phrases += [
        f"{name.replace('_', ' ')} {shared[name]}, the paper {value}"
        for name, value in paper.SETTINGS.items()
        if shared[name] != value
    ]
    if shared["batches"] < DEFAULT_BATCHES:
        phrases.append(f"--batches {shared['batches']}, the command's default {DEFAULT_BATCHES}")
    if not any(group.weight_init == paper.INIT for group in groups):
        inits = distinct(group.weight_init for group in groups)
        phrases.append(f"weight init {' and '.join(inits)}, the paper {paper.INIT}")
    else:  # of other inits there may be less
        grid = {group: records for group, records in tables.initial(groups).items() if group.weight_init == paper.INIT}
        if absent := paper.DEPTHS - {group.layers for group in grid}:
            phrases.append(f"without the depths {', '.join(map(str, sorted(absent)))}")
        if (fewest := min(map(len, grid.values()), default=paper.SEEDS)) < paper.SEEDS:
            phrases.append(f"{fewest} seeds, the paper {paper.SEEDS}")
    trainings = [(group, tables.training(records)) for group, records in tables.trained(groups).items()]
    tokens = [("mini-batches of", shared["max_tokens"])]
    tokens += [(f"{group.title} of", words["tokens_an_update"]) for group, words in trainings if "tokens_an_update" in words]
    if corpus:
        phrases += [f"{what} {found:,} tokens, the paper {corpus.tokens:,}" for what, found in tokens if found != corpus.tokens]
    return phrases


def claims_section(groups):
    """A paragraph for each claim of the paper that the measurements speak to."""
    found = gradient_claims.claims(groups)
    if not found:
        return []
    lines = [
        "## The paper's claims, here",
        "",
        "Whether each claim of the paper about these quantities holds here, for each init.",
        "",
    ]
    for claim in found:
        lines += [f"*{claim.where}.* {claim.statement}", ""]
        lines += [f"- {finding.subject}: **{finding.verdict}**. Ours: {finding.words}." for finding in claim.findings]
        lines.append("")
    return [*lines, f"What the words mean: {gradient_claims.RULES}", ""]


def depth_section(groups):
    """Figure 3 (c, d)."""
    initial = tables.initial(groups)
    if not initial:
        return []
    lines = [
        "## Figure 3 (c, d): W2 of the decoder's last layer, before training",
        "",
        "| weight init | position | layers | expected gradient | batch gradient | expected, unbiased | ours / paper | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    widest = {}
    for group, records in initial.items():
        expected = intervals.mean(tables.last_w2(records, "expected_gradient"))
        unbiased = [value for value in tables.last_w2(records, "unbiased_gradient") if value is not None]
        half = (expected.high - expected.low) / 2 / expected.value
        if not math.isnan(half):
            widest[group.weight_init] = max(widest.get(group.weight_init, 0.0), half)
        ratio = f"{expected.value / paper.POST_LN:.2f}" if group.ln_position == "post" else "-"
        lines.append(
            f"| {group.weight_init} | {position_title(group.ln_position)} | {group.layers}-{group.layers} | "
            f"{bracket(expected)} | {bracket(intervals.mean(tables.last_w2(records, 'batch_gradient')))} | "
            f"{f'{sum(unbiased) / len(unbiased):.3f}' if unbiased else '-'} | {ratio} | {len(records)} |"
        )
    lines += [
        "",
        f"*Ours / paper*: the expected gradient beside the paper's figure, about {paper.POST_LN} for Post-LN "
        "at every depth. *Unbiased*: what the expected gradient would come to with ever more mini-batches; the mean over N "
        "still holds 1/N of the mini-batches' variance."
        + "".join(f" `{name}`: the widest interval is +-{100 * half:.1f} % of its mean." for name, half in widest.items()),
        "",
    ]
    exponents = tables.depth_exponents(groups)
    if exponents:
        lines += [
            "Exponent b of norm = a layers^b, of each seed's own line through the logarithms; theorem 1 as a bound: 0 for "
            f"Post-LN, {paper.PRE_EXPONENT:g} for Pre-LN.",
            "",
            "| weight init | position | quantity | exponent | seeds |",
            "|---|---|---|---|---|",
        ]
        for (weight_init, position, quantity), exponent in exponents.items():
            lines.append(
                f"| {weight_init} | {position_title(position)} | {quantity.replace('_', ' ')} | "
                f"{bracket(exponent.estimate)} | {exponent.seeds} |"
            )
        lines.append("")
    return lines


def layer_section(groups):
    """Figure 3 (a, b) before training, for the shallowest models of each kind."""
    shown = tables.shallowest(tables.initial(groups))
    if not shown:
        return []
    lines = ["## Figure 3 (a, b): layer by layer, before training", ""]
    for matrix, name in study_tables.PAPER_MATRICES.items():
        lines += [
            f"Expected gradient of {name}, from the layer next to the input to the one next to the output:",
            "",
            "| weight init | model | stack | layers 1, 2, ... | factor a layer |",
            "|---|---|---|---|---|",
        ]
        for (group, records), stack in itertools.product(shown.items(), STACKS):
            means = ", ".join(f"{norm.value:.3f}" for norm in tables.layer_norms(records, stack, matrix))
            factor = tables.layer_factor(records, stack, matrix)
            lines.append(f"| {group.weight_init} | {group.title} | {stack} | {means} | {bracket(factor) if factor else '-'} |")
        lines.append("")
    lines += [
        "A factor above 1 grows towards the output, 1 is flat. All depths, matrices and intervals: figure3.tsv, figure3.json.",
        "",
    ]
    return lines


def training_section(groups):
    """Figure 3 (a, b) after training, checkpoint by checkpoint."""
    trained = tables.trained(groups)
    if not trained:
        return []
    lines = ["## Figure 3 (a, b): layer by layer, after training", ""]
    for group, records in trained.items():
        words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in tables.training(records).items()) or "not known"
        lines.append(
            f"- {group.title}, `{group.weight_init}`, was trained with: {words}. {count(len(records), 'seed')}: one checkpoint, "
            "that many orders of mini-batches. Its intervals say nothing of another training."
        )
    lines += [
        "",
        "| weight init | model | matrix | stack | expected gradient, layers 1, 2, ... | the same model before training |",
        "|---|---|---|---|---|---|",
    ]
    for (group, records), (matrix, name), stack in itertools.product(
        trained.items(), study_tables.PAPER_MATRICES.items(), STACKS
    ):
        before = groups.get(group._replace(checkpoint=None, updates=None))
        after = ", ".join(bracket(norm) for norm in tables.layer_norms(records, stack, matrix))
        start = ", ".join(f"{norm.value:.3f}" for norm in tables.layer_norms(before, stack, matrix)) if before else "not measured"
        lines.append(f"| {group.weight_init} | {group.title} | {name} | {stack} | {after} | {start} |")
    return [*lines, ""]


def hidden_section(groups):
    """Hidden states and (epsilon, delta)."""
    lines = [
        "## Hidden states: is their squared norm near its mean?",
        "",
        "Z = ||x||^2 at real tokens, x the residual sum after a layer's FFN (Post-LN: x^post,5, before its last LN). The paper: "
        f"{paper.BOUNDED}, P[(Z - EZ) / EZ <= epsilon] >= 1 - delta. Shown is the layer where it is worst; the "
        "share of tokens beyond has its interval over seeds, and the whole of it must be at most delta. `fairseq-ln theory` asks "
        "the same by the same rule of models without dropout, in fewer tokens.",
        "",
        f"| weight init | model | EZ / d, first and last encoder layer | decoder | smallest epsilon at delta = {paper.DELTA:g} | "
        f"share of tokens above {1 + paper.EPSILON:g} EZ | bounded as the paper's? | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group, records in groups.items():
        rows = list(hidden_rows(records))
        means = {stack: [row["mean"] for row in rows if row["stack"] == stack] for stack in STACKS}
        widest = max(rows, key=lambda row: row["epsilon"])
        (stack, layer), share, verdict = gradient_claims.bounded(records)
        lines.append(
            f"| {group.weight_init} | {group.title} "
            + "".join(f"| {means[stack][0]:.2f}, {means[stack][-1]:.2f} " for stack in means)
            + f"| {widest['epsilon']:.3f} ({widest['stack']} {widest['layer']}) | {bracket(share)} ({stack} {layer}) | "
            f"{verdict} | {len(records)} |"
        )
    return [*lines, ""]


def commands(groups, shared):
    """The commands that measure the same, as lines, for folders DATA and OUT; a checkpoint is a file CHECKPOINT."""
    common = ["--subset", shared["subset"], "--batches", shared["batches"], "--max-tokens", shared["max_tokens"]]
    for name in ("dropout", "label_smoothing", "compute_dtype"):
        common += [as_flag(name), shared[name]]
    depths, positions = defaultdict(list), defaultdict(list)
    for group, records in tables.initial(groups).items():
        depths[group.weight_init, group.ln_position, seeds(records)].append(group.layers)
    for (weight_init, position, of_seeds), layers in depths.items():
        positions[weight_init, of_seeds, tuple(layers)].append(position)
    lines = [
        [
            "--arch",
            shared["arch"],
            "--weight-init",
            weight_init,
            "--ln-position",
            *names,
            "--layers",
            *layers,
            "--seeds",
            *of_seeds,
        ]
        for (weight_init, of_seeds, layers), names in positions.items()
    ]
    lines += [["--checkpoint", "CHECKPOINT", "--seeds", *seeds(records)] for records in tables.trained(groups).values()]
    return [shlex.join(map(str, ["fairseq-ln", "gradients", "DATA", "--out", "OUT", *line, *common])) for line in lines]


def seeds(records):
    """The seeds of a group."""
    return tuple(record["unit"]["seed"] for record in records)


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
    for group, records in tables.shallowest(groups).items():
        for stack in STACKS:
            for matrix, name in study_tables.PAPER_MATRICES.items():
                sizes = {"sgd": [], "adam_first": [], "adam_still": []}
                for number, row in enumerate(records[0]["matrices"]):
                    if (row["stack"], row["matrix"]) == (stack, matrix):
                        for kind, values in tables.relative_updates(
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
