"""How fast our training is against stock fairseq's, in real fairseq-train processes.

    python benchmarks/train_speed.py DATA_BIN [--rows NAME ...] [--pairs 5] [--updates 20] [--out benchmarks]

DATA_BIN is a folder made by fairseq-preprocess: of two languages, or with --only-source for the rows of BERT. All
processes run on the CPU, one at a time, each with as many threads as there are cores; nothing else should run meanwhile.
Results go to results.json and RESULTS.md in ``--out`` after each row.

What is measured
    In each pair, the processes of a row run in turn, with one seed (the pair's number), so on the same batches: the
    target tokens of each update that fairseq logs must agree, or the benchmark stops. Per process, 4 updates warm up
    and ``--updates`` are measured. fairseq logs a line an update (``--log-interval 1``); its own times there are
    rounded, so this program notes when it reads each line. Words per second are the target tokens (``wpb``, without
    pads) of the measured updates over the seconds from the line of the last warm-up update to that of the last measured
    one. Start, validation, checkpoints and end are not in it. Peak memory is what the system says of the whole process.

Rows (all of them that go with the data unless ``--rows`` says which)
    paper-bf16, paper-fp32   the paper's IWSLT14 size, 6-6 layers, 512 / 1024, 4 heads
    small-bf16               256 / 512, 4 heads
    deep-bf16                14-14 layers; in the same pairs also ours at 6-6 and 10-10, for the cost of a layer
    hook-1, hook-100         ours with ``--grad-norm-interval`` 1 and 100 against ours without. Two processes may differ
                             by more than the hook costs, so a clock in the hook gives it too (hook_timer.py). hook-100
                             measures 100 updates at least, of which one has the hook's work.
    fp32-no-amx              as paper-fp32, with oneDNN kept from AMX on both sides
    bert-bf16, bert-fp32     masked LM at BERT base's size, 12 layers, 768 / 3072, 12 heads, Post-LN, against fairseq's
                             ``roberta``; tokens are then all but pads, not the masked ones only
    bert-small-bf16, bert-small-fp32   the same, 6 layers, 256 / 1024, 4 heads
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field

import results_file
from processes import Process, cores, end_in_order, environment, failure, reason, say

WARMUP_UPDATES = 4

#: What both sides share: the recipes' settings (appendix A.1 of the paper) with fairseq's own schedule.
COMMON = (
    "--cpu --dropout 0.1 --adam-betas (0.9,0.98) --clip-norm 0.0 --lr 5e-4 --lr-scheduler inverse_sqrt "
    "--warmup-updates 4000 --max-tokens 4096 --required-batch-size-multiple 1 --no-save --disable-validation "
    "--log-format json --log-interval 1"
).split()
#: What they share beside it, by task.
TASKS = {
    "translation": "--task translation --label-smoothing 0.1".split(),
    "masked_lm": (
        "--task masked_lm --criterion masked_lm --tokens-per-sample 512 --sample-break-mode complete --attention-dropout 0.1"
    ).split(),
}
STOCK = "--arch transformer --criterion label_smoothed_cross_entropy --optimizer adam".split()
STOCK_BERT = "--arch roberta --optimizer adam".split()
OURS_BERT = "--user-dir fairseq_lnplugin --optimizer fused_adam".split()
OURS = [*OURS_BERT, "--criterion", "fused_label_smoothed_cross_entropy"]

FAIRSEQ_TRAIN = ("-m", "fairseq_cli.train")
HOOK_TIMER = ("benchmarks/hook_timer.py",)

PAPER = ("transformer_ln_study_iwslt_de_en", 512, 1024, 4)
SMALL = ("transformer_ln_study_small", 256, 512, 4)
BERT = ("bert_ln_study", 768, 3072, 12)
SMALL_BERT = ("bert_ln_study_small", 256, 1024, 4)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ``about``: what it is, for a reader. ``sides``: name to arguments of fairseq-train; the first two are compared.
    ``goal``: the least ratio (0: none), or the largest share of the hook. ``depths``: side to its layers, for the cost
    of a layer. ``hook_interval``: of the second side, when the hook is what is measured. ``variables``: of the
    environment. ``task``: of fairseq, a key of :data:`TASKS`.
    """

    about: str
    sides: dict
    goal: float
    depths: dict = field(default_factory=dict)
    hook_interval: int = 0
    variables: dict = field(default_factory=dict)
    task: str = "translation"


def size_flags(size, layers, stacks=("encoder", "decoder")):
    """A size and a depth as flags of fairseq's own models."""
    _, embed_dim, ffn_embed_dim, heads = size
    sizes = (("embed-dim", embed_dim), ("ffn-embed-dim", ffn_embed_dim), ("attention-heads", heads), ("layers", layers))
    flags = [(f"--{stack}-{name}", str(value)) for stack in stacks for name, value in sizes]
    return [word for flag in flags for word in flag]


def stock(size, layers=6):
    """Arguments of fairseq's ``transformer`` at a size and a depth."""
    return [*STOCK, *size_flags(size, layers)]


def ours(size, compute_dtype, layers=6, *more):
    """Arguments of our model at a size and a depth."""
    depth = ["--encoder-layers", str(layers), "--decoder-layers", str(layers)]
    return [*OURS, "--arch", size[0], *depth, "--compute-dtype", compute_dtype, *more]


def against_stock(about, size, compute_dtype, goal, **more):
    """A row of stock and ours with 6-6 layers."""
    return Row(about, {"stock": stock(size), "ours": ours(size, compute_dtype)}, goal, **more)


def bert(about, size, layers, compute_dtype):
    """A row of fairseq's ``roberta`` and our model of the same size, Post-LN both."""
    sides = {
        "stock": [*STOCK_BERT, *size_flags(size, layers, ["encoder"])],
        "ours": [*OURS_BERT, "--arch", size[0], "--compute-dtype", compute_dtype],
    }
    return Row(about, sides, 1.0, task="masked_lm")


def hook(interval, goal):
    """A row of ours without and with the gradient-norm hook."""
    sides = {
        name: ours(PAPER, results_file.faster_dtype(), 6, "--grad-norm-interval", str(value))
        for name, value in (("without", 0), ("with", interval))
    }
    return Row(f"gradient norms, interval {interval}", sides, goal, hook_interval=interval)


ROWS = {
    "paper-bf16": against_stock("paper's IWSLT14 size, bfloat16", PAPER, "bfloat16", 3.0),
    "paper-fp32": against_stock("paper's IWSLT14 size, float32", PAPER, "float32", 1.3),
    "small-bf16": against_stock("d 256, FFN 512, bfloat16", SMALL, "bfloat16", 2.5),
    "deep-bf16": Row(
        "paper's IWSLT14 size, 14-14 layers, bfloat16",
        {
            "stock": stock(PAPER, 14),
            "ours": ours(PAPER, "bfloat16", 14),
            "ours-10": ours(PAPER, "bfloat16", 10),
            "ours-6": ours(PAPER, "bfloat16", 6),
        },
        0,
        depths={"ours-6": 6, "ours-10": 10, "ours": 14},
    ),
    "hook-1": hook(1, 0.02),
    "hook-100": hook(100, 0.002),
    "fp32-no-amx": against_stock(
        "paper's IWSLT14 size, float32, no AMX", PAPER, "float32", 1.2, variables={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    ),
    "bert-bf16": bert("BERT base, 12 layers, bfloat16", BERT, 12, "bfloat16"),
    "bert-fp32": bert("BERT base, 12 layers, float32", BERT, 12, "float32"),
    "bert-small-bf16": bert("BERT of 6 layers, d 256, FFN 1024, bfloat16", SMALL_BERT, 6, "bfloat16"),
    "bert-small-fp32": bert("BERT of 6 layers, d 256, FFN 1024, float32", SMALL_BERT, 6, "float32"),
}


def train(row, side, data, seed, updates, folder):
    """One fairseq-train from start to end.

    ``updates``: how many are measured. ``folder``: for its files, empty.

    Returns:
        dict: ``tokens``, the target tokens of each measured update (list); ``seconds`` of all of them;
        ``hook_seconds`` of each update that the hook timer told of, by update number; ``peak_gib``.

    Raises:
        SystemExit: fairseq-train failed.

    """
    last = WARMUP_UPDATES + updates
    command = [sys.executable, *arguments(row, side, str(data.folder), str(seed), updates, folder)]
    at, tokens, hook_seconds, log = {}, {}, {}, []
    with Process(command, environment(cores(), **row.variables)) as process:
        for now, line in process.lines():
            log.append(line)
            if "| train_inner | {" in line:
                values = json.loads(line[line.index("{") :])
                update = int(values["num_updates"])
                at[update], tokens[update] = now, float(values["wpb"])
            elif line.startswith("hook_timer | "):
                values = json.loads(line[line.index("{") :])
                hook_seconds[values["update"]] = values["seconds"]
        process.wait()
    if process.status != 0 or not set(range(WARMUP_UPDATES, last + 1)) <= at.keys():
        raise failure(
            f"fairseq-train ({side}) stopped with status {process.status} after "
            f"{max(at, default=0)} of {last} updates ({reason(''.join(log))}); to see more, run "
            f"{shown(row, side, data, seed, updates)}"
        )
    return {
        "tokens": [tokens[update] for update in range(WARMUP_UPDATES + 1, last + 1)],
        "seconds": at[last] - at[WARMUP_UPDATES],
        "hook_seconds": {update: value for update, value in hook_seconds.items() if update > WARMUP_UPDATES},
        "peak_gib": process.peak_gib,
    }


def arguments(row, side, data_bin, seed, updates, save_dir):
    """What follows the Python program on the command line."""
    program = HOOK_TIMER if row.hook_interval else FAIRSEQ_TRAIN
    until = ["--max-update", str(WARMUP_UPDATES + updates), "--seed", seed, "--save-dir", save_dir]
    return [*program, data_bin, *row.sides[side], *TASKS[row.task], *COMMON, *until]


def shown(row, side, data, seed, updates):
    """The command line as the results show it."""
    variables = [f"{name}={value}" for name, value in row.variables.items()]
    return results_file.shown([*variables, "python", *arguments(row, side, data.name, str(seed), updates, "EMPTY")])


def measure(name, row, data, pairs, updates):
    """All pairs of a row.

    Returns:
        dict: side to the list of what :func:`train` returned, one a pair.

    Raises:
        SystemExit: fairseq-train failed, or the sides of a pair did not see the same batches.

    """
    runs = {side: [] for side in row.sides}
    began = time.perf_counter()
    for pair in range(1, pairs + 1):
        for side in row.sides:
            with tempfile.TemporaryDirectory() as folder:
                run = train(row, side, data, pair, updates, folder)
            runs[side].append(run)
            first = runs[next(iter(row.sides))][-1]
            if run["tokens"] != first["tokens"]:
                raise failure(f"{name}, pair {pair}: {side} did not train on the same batches as the first side")
            say(
                f"{name}, pair {pair} of {pairs}, {side}: {sum(run['tokens']) / run['seconds']:,.0f} tokens/s, "
                f"{run['seconds'] / updates:.3f} s an update, {run['peak_gib']:.1f} GiB"
            )
        if pair < pairs:
            say(f"{name}: about {(time.perf_counter() - began) / pair * (pairs - pair) / 60:.0f} min left in this row")
    return runs


def summary(row, runs, updates):
    """The numbers of a row, as results.json keeps them. ``runs``: as :func:`measure` returns them."""
    seconds = {side: [run["seconds"] / updates for run in runs[side]] for side in runs}
    first, second = list(row.sides)[:2]
    numbers = {
        "about": row.about,
        "goal": row.goal,
        "pairs": len(seconds[first]),
        "updates": updates,
        "warmup_updates": WARMUP_UPDATES,
        "sides": {
            side: {
                "tokens_per_second": results_file.spread([sum(run["tokens"]) / run["seconds"] for run in runs[side]]),
                "seconds_per_update": results_file.spread(seconds[side]),
                "peak_gib": results_file.spread([run["peak_gib"] for run in runs[side]]),
            }
            for side in runs
        },
        "ratio": results_file.spread([a / b for a, b in zip(seconds[first], seconds[second], strict=True)]),
    }
    if row.depths:
        numbers["layers"] = cost_of_a_layer(row.depths, seconds)
    if row.hook_interval:
        numbers["hook"] = cost_of_the_hook(row.hook_interval, runs)
    return numbers


def cost_of_a_layer(depths, seconds):
    """Seconds that one more encoder and decoder layer take of an update, between three depths.

    ``depths``: side to its layers, growing. ``seconds``: side to its seconds an update, one a pair.
    """
    (low, at_low), (middle, at_middle), (high, at_high) = ((depths[side], seconds[side]) for side in depths)
    first = [(b - a) / (middle - low) for a, b in zip(at_low, at_middle, strict=True)]
    second = [(b - a) / (high - middle) for a, b in zip(at_middle, at_high, strict=True)]
    return {
        "seconds": {str(depths[side]): results_file.spread(seconds[side]) for side in depths},
        "cost": {f"{low} to {middle}": results_file.spread(first), f"{middle} to {high}": results_file.spread(second)},
        "ratio": results_file.spread([b / a for a, b in zip(first, second, strict=True)]),
    }


def cost_of_the_hook(interval, runs):
    """What the hook takes of an update, by its clock (``share``, per measurement) and as two processes differ."""
    inside = [sum(run["hook_seconds"].values()) for run in runs["with"]]
    measured = [value for run in runs["with"] for update, value in run["hook_seconds"].items() if update % interval == 0]
    return {
        "interval": interval,
        "share": results_file.spread([hook / (run["seconds"] - hook) for hook, run in zip(inside, runs["with"], strict=True)]),
        "seconds_per_measurement": results_file.spread(measured),
        "between_processes": results_file.spread(
            [b["seconds"] / a["seconds"] - 1 for a, b in zip(runs["without"], runs["with"], strict=True)]
        ),
    }


def updates_of(row, asked):
    """How many updates are measured: as asked for, or the next multiple of the hook's interval."""
    return -(-asked // row.hook_interval) * row.hook_interval if row.hook_interval else asked


def result_line(name, numbers):
    """What is printed for a row."""
    if "hook" in numbers:
        share = results_file.percent_text(numbers["hook"]["share"], 3)
        apart = results_file.percent_text(numbers["hook"]["between_processes"], 1)
        return f"{name}: {share} of an update by the clock in the hook, {apart} between processes".replace("**", "")
    memory = " and ".join(f"{numbers['sides'][side]['peak_gib']['median']:.1f}" for side in ("stock", "ours"))
    line = f"{name}: ours / stock {results_file.ratio_text(numbers['ratio'])}, peak memory {memory} GiB (stock, ours)"
    if "layers" in numbers:
        line += f", cost of a layer, deep / shallow {results_file.ratio_text(numbers['layers']['ratio'])}"
    return line.replace("**", "")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_bin", metavar="DATA_BIN", help="folder made by fairseq-preprocess")
    names = list(ROWS)
    parser.add_argument("--rows", nargs="+", choices=names, metavar="NAME", help="which (default: all that go with the data)")
    parser.add_argument("--updates", type=results_file.count, default=20, help="measured updates a process (default: 20)")
    results_file.add_arguments(parser)
    args = parser.parse_args()
    data = results_file.Data(args.data_bin, args.data_name)
    fitting = [name for name in names if (ROWS[name].task == "translation") == (data.languages is not None)]
    for name in args.rows or ():
        if name not in fitting:
            raise failure(f"{name} needs a DATA_BIN of --task {ROWS[name].task}; with {data.name} go {', '.join(fitting)}")
    results_file.begin(args.out)
    for name in args.rows or fitting:
        row, updates = ROWS[name], updates_of(ROWS[name], args.updates)
        command = [
            "python",
            "benchmarks/train_speed.py",
            data.name,
            "--rows",
            name,
            "--pairs",
            str(args.pairs),
            "--updates",
            str(args.updates),
        ]
        had = results_file.conditions(data, command, environment(cores(), **row.variables))
        numbers = summary(row, measure(name, row, data, args.pairs, updates), updates)
        numbers["commands"] = {side: shown(row, side, data, "PAIR", updates) for side in row.sides}
        results_file.save(args.out, "training", name, {**numbers, "conditions": had})
        print(result_line(name, numbers), flush=True)


if __name__ == "__main__":
    end_in_order()
    try:
        main()
    except KeyboardInterrupt:
        raise failure("interrupted; the rows finished before are kept") from None
