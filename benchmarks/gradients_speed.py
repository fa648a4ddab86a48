"""How fast ``fairseq-ln gradients`` measures figure 3 against the obvious way (naive_gradients.py).

    python benchmarks/gradients_speed.py DATA_BIN [--rows NAME ...] [--pairs 5] [--batches 4] [--out benchmarks]

Both measure one model of the paper's IWSLT14 size on the first mini-batches of 4096 tokens, in processes of their own, in
turn, with as many threads as there are cores. Seconds a mini-batch, building and loading left out on both sides; ours
holds the norms of hidden states too. Results go to results.json and RESULTS.md in ``--out``.
"""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

import results_file
from processes import Process, cores, end_in_order, environment, failure, reason, say

#: Row to layers and type of our products; the obvious way is float32.
ROWS = {"6-6-fp32": (6, "float32"), "14-14-fp32": (14, "float32"), "6-6-bf16": (6, "bfloat16"), "14-14-bf16": (14, "bfloat16")}

NAIVE = (
    "--task translation --arch transformer --cpu --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --dropout 0.1 "
    "--max-tokens 4096 --encoder-normalize-before --decoder-normalize-before"
).split()
SIZES = (("embed-dim", 512), ("ffn-embed-dim", 1024), ("attention-heads", 4))


def naive(data_bin, layers, batches, seed):
    """What follows the Python program on the command line: the obvious way."""
    sizes = [
        word
        for stack in ("encoder", "decoder")
        for name, value in (*SIZES, ("layers", layers))
        for word in (f"--{stack}-{name}", str(value))
    ]
    return ["benchmarks/naive_gradients.py", str(batches), data_bin, *NAIVE, *sizes, "--seed", seed]


def ours(data_bin, layers, dtype, batches, seed, folder):
    """What follows the Python program on the command line: ours."""
    return (
        f"-m fairseq_lnplugin.cli gradients {data_bin} --cpu --arch transformer_ln_study_iwslt_de_en --ln-position pre --layers "
        f"{layers} --compute-dtype {dtype} --seeds {seed} --batches {batches} --max-tokens 4096 --out {folder}"
    ).split()


def timed(side, arguments):
    """Run a side: all that it printed, and its peak memory (GiB).

    Raises:
        SystemExit: it failed.

    """
    with Process([sys.executable, *arguments], environment(cores())) as process:
        log = "".join(line for _, line in process.lines())
        process.wait()
    if process.status != 0:
        raise failure(f"the {side} side stopped with status {process.status} ({reason(log)})")
    return log, process.peak_gib


def measure(name, data, pairs, batches):
    """All pairs of a row: side to a list of ``(seconds a mini-batch, peak memory in GiB)``."""
    layers, dtype = ROWS[name]
    runs = {"naive": [], "ours": []}
    for pair in range(1, pairs + 1):
        log, peak = timed("naive", naive(str(data.folder), layers, batches, str(pair)))
        plain = json.loads(log.splitlines()[-1])
        runs["naive"].append((plain["seconds"] / batches, peak))
        with tempfile.TemporaryDirectory() as folder:
            _, peak = timed("ours", ours(str(data.folder), layers, dtype, batches, pair, folder))
            record = json.loads((Path(folder) / "measurements.jsonl").read_text(encoding="utf-8"))
        runs["ours"].append((record["seconds"] / batches, peak))
        # ours counts the decoder's tokens in the first mini-batches alone
        tokens = record["hidden"][-1]["tokens"]
        if tokens not in itertools.accumulate(plain["tokens"]):
            raise failure(f"{name}: the two sides took other mini-batches ({plain['tokens']} and {tokens} target tokens)")
        say(
            f"{name}, pair {pair} of {pairs}: " + ", ".join(f"{side} {of[-1][0]:.2f} s a mini-batch" for side, of in runs.items())
        )
    return runs


def summary(name, runs, batches):
    """The numbers of a row, as results.json keeps them."""
    layers, dtype = ROWS[name]
    return {
        "about": f"Pre-LN {layers}-{layers}, ours {dtype}",
        "pairs": len(runs["ours"]),
        "batches": batches,
        "sides": {
            side: {
                "seconds": results_file.spread([seconds for seconds, _ in of]),
                "peak_gib": results_file.spread([peak for _, peak in of]),
            }
            for side, of in runs.items()
        },
        "ratio": results_file.spread([a / b for (a, _), (b, _) in zip(runs["naive"], runs["ours"], strict=True)]),
    }


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_bin", metavar="DATA_BIN", help="folder made by fairseq-preprocess")
    names = list(ROWS)
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="NAME", help="which (default: all)")
    parser.add_argument("--batches", type=results_file.count, default=4, help="mini-batches a process (default: 4)")
    results_file.add_arguments(parser)
    args = parser.parse_args()
    data = results_file.Data(args.data_bin, args.data_name)
    results_file.begin(args.out)
    for name in args.rows:
        layers, dtype = ROWS[name]
        command = f"python benchmarks/gradients_speed.py {data.name} --rows {name} --pairs {args.pairs} --batches {args.batches}"
        had = results_file.conditions(data, command.split(), environment(cores()))
        numbers = summary(name, measure(name, data, args.pairs, args.batches), args.batches)
        numbers["commands"] = {
            "naive": results_file.shown(["python", *naive(data.name, layers, args.batches, "PAIR")]),
            "ours": results_file.shown(["python", *ours(data.name, layers, dtype, args.batches, "PAIR", "EMPTY")]),
        }
        results_file.save(args.out, "gradients", name, {**numbers, "conditions": had})
        print(f"{name}: naive / ours {results_file.ratio_text(numbers['ratio'])}".replace("**", ""), flush=True)


if __name__ == "__main__":
    end_in_order()
    try:
        main()
    except KeyboardInterrupt:
        raise failure("interrupted; the rows finished before are kept") from None
