"""From the measurements of ``fairseq-ln gradients`` to numbers: groups, means over seeds, factors by layer, exponents by depth.

A *measurement* is one line of measurements.jsonl (see :mod:`~fairseq_lnplugin.analysis.measurements`), a *group* all of them
that differ in the seed only. Every interval is over seeds, one value a seed.
"""

import itertools
import json
from collections import defaultdict
from typing import NamedTuple

from fairseq_lnplugin.study import intervals
from fairseq_lnplugin.study.wording import position_title
from fairseq_lnplugin.weight_init import WEIGHT_INITS

QUANTITIES = ("expected_gradient", "batch_gradient")


class Group(NamedTuple):
    """What one row of a table is about; ``checkpoint``, the file's hash, and ``updates`` are None before training."""

    weight_init: str
    ln_position: str
    layers: int
    checkpoint: str | None = None
    updates: int | None = None

    @property
    def title(self):
        """For tables and legends."""
        trained = f", after {self.updates} updates (checkpoint {self.checkpoint[:8]})" if self.checkpoint else ""
        return f"{position_title(self.ln_position)}, {self.layers}-{self.layers}{trained}"


def identity(unit):
    """What makes two measurements the same: their ``unit``, without what a checkpoint's file tells of its training."""
    checkpoint = unit["checkpoint"] and {name: unit["checkpoint"][name] for name in ("sha256", "updates")}
    return json.dumps(unit | {"checkpoint": checkpoint}, sort_keys=True)


def training(records):
    """How the checkpoint of a group was trained, as ``{name: value}``; {} where its measurements do not say."""
    return records[0]["unit"]["checkpoint"].get("training", {})


def grouped(records):
    """Measurements by :class:`Group`, sorted; what the same unit was measured twice counts once."""
    groups = defaultdict(list)
    for record in {identity(record["unit"]): record for record in reversed(records)}.values():
        unit, trained = record["unit"], record["unit"]["checkpoint"] or {}
        names = unit["weight_init"], unit["ln_position"], unit["layers"]
        groups[Group(*names, trained.get("sha256"), trained.get("updates"))].append(record)
    inits = list(WEIGHT_INITS)

    def place(group):
        trained = (-1, "") if group.checkpoint is None else (group.updates, group.checkpoint)
        return *trained, inits.index(group.weight_init), group.layers, group.ln_position

    return {group: sorted(groups[group], key=lambda record: record["unit"]["seed"]) for group in sorted(groups, key=place)}


def initial(groups):
    """The groups before training."""
    return {group: records for group, records in groups.items() if group.checkpoint is None}


def trained(groups):
    """The groups of checkpoints."""
    return {group: records for group, records in groups.items() if group.checkpoint is not None}


def shallowest(groups):
    """Of each init, position and checkpoint the group with the fewest layers."""
    chosen = {}
    for group in sorted(groups, key=lambda group: group.layers):
        chosen.setdefault((group.weight_init, group.ln_position, group.checkpoint), group)
    return {group: records for group, records in groups.items() if group in chosen.values()}


def table(groups, batches):
    """One dict for each group, matrix and quantity: the fields of the group, the matrix, ``quantity``, its mean and interval."""
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


def norms(record, stack, matrix, quantity="expected_gradient"):
    """The norms of one measurement, layer by layer."""
    return [row[quantity] for row in record["matrices"] if (row["stack"], row["matrix"]) == (stack, matrix)]


def layer_norms(records, stack, matrix):
    """The mean over seeds of the expected gradient, an :class:`~intervals.Estimate` a layer."""
    return [intervals.mean(of_layer) for of_layer in zip(*(norms(record, stack, matrix) for record in records), strict=True)]


def layer_factor(records, stack, matrix):
    """The factor by which the expected gradient grows from a layer to the next, of each seed's own line; None for one layer."""
    lines = [(range(len(line)), line) for line in (norms(record, stack, matrix) for record in records)]
    return intervals.mean_factor(lines) if len(lines[0][0]) > 1 else None


def last_w2(records, quantity):
    """The values, one a seed, of W2 in the decoder's last layer."""
    return [record["matrices"][-1][quantity] for record in records]


class Exponent(NamedTuple):
    """An exponent in the number of layers, and how many seeds it is of."""

    estimate: intervals.Estimate
    seeds: int


def depth_exponents(groups):
    """Exponents of the last W2's norm in the number of layers: ``{(weight_init, ln_position, quantity): Exponent}``.

    Of each seed's own line, over the seeds that were measured at every depth; nothing where there is one depth.
    """
    by_seed = defaultdict(lambda: defaultdict(dict))
    for group, records in initial(groups).items():
        for record in records:
            by_seed[group.weight_init, group.ln_position][record["unit"]["seed"]][group.layers] = record
    found = {}
    for (kind, seeds), quantity in itertools.product(by_seed.items(), QUANTITIES):
        depths = set().union(*seeds.values())
        lines = [(list(one), last_w2(one.values(), quantity)) for one in seeds.values() if set(one) == depths]
        if len(depths) > 1 and lines:
            found[*kind, quantity] = Exponent(intervals.mean_exponent(lines), len(lines))
    return found


def by_layer(records, kind, name, estimate=intervals.mean):
    """What measurements say of each layer: ``{(stack, layer): Estimate}``, of one value a measurement.

    ``kind``: the measurements' list of rows with ``stack``, ``layer`` and ``name``.
    """
    values = defaultdict(list)
    for record in records:
        for row in record[kind]:
            values[row["stack"], row["layer"]].append(row[name])
    return {layer: estimate(of_layer) for layer, of_layer in values.items()}


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
