"""How fast our decoding is against stock fairseq's, in real fairseq-generate processes, with the same weights.

    python benchmarks/decode_speed.py DATA_BIN --checkpoint FILE [--gen-subset test1] [--pairs 5] [--compute-dtype TYPE]

DATA_BIN is the folder, made by fairseq-preprocess, that the checkpoint was trained on; FILE is a checkpoint of
``transformer_ln_study``. All of the subset is translated; the recipes' ``test1`` is the first 500 sentences of valid.
Everything runs on the CPU and nothing else should run meanwhile. The row "DATA, SUBSET" goes to results.json and
RESULTS.md in ``--out``.

What is measured
    stock   the checkpoint's weights under ``--arch transformer`` (the names of the parameters are fairseq's), float32,
            without our plug-in; one process with as many threads as there are cores, which is fairseq's default
    stock in shards
            the same in the shards of ours, which fairseq's flags allow: what of a gain is ours, and what the shards'
    ours    the checkpoint itself, with bfloat16 products where there is AMX and float32 elsewhere, or with the type that
            --compute-dtype names, which is then in the row's name; one process of one thread for each core, a shard of
            the sentences each, in two batches or more, as recipes/common.sh decodes

    They run in turn, once in each pair, with the same search. Reported: the seconds of the whole command (of ours,
    until the last shard ends), fairseq's own "Translated ... in S s" (of ours, the slowest shard's), and peak memory
    (of ours, the sum over the shards). BLEU, in the first pair: tokenized, with sacrebleu, against the T- lines.
"""

import argparse
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import results_file
from processes import ROOT, Process, cores, end_in_order, environment, failure, reason, say

GOAL = 2.5
SENTENCES_A_SHARD = 50  # at least, of ours; as recipes/common.sh

#: The search of appendix A.1 of the paper, as the recipes have it; and all sentences, where fairseq drops a last batch.
COMMON = (
    "--task translation --cpu --beam 5 --lenpen 1.2 --max-len-a 1.2 --max-len-b 10 --remove-bpe --max-tokens 4096 "
    "--required-batch-size-multiple 1 --no-progress-bar"
).split()

#: Without our plug-in torch loads the Namespace in a checkpoint only so.
LOADING = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}

TRANSLATED = re.compile(r"Translated ([\d,]+) sentences \([\d,]+ tokens\) in ([\d.]+)s")


def write_stock_checkpoint(source, target):
    """Write a checkpoint of ours as one of fairseq's ``transformer``: the same weights, optimizer state and all else.

    Only the configuration differs: no flags of ours are in it, and model, criterion and optimizer have fairseq's names.
    (``--encoder-normalize-before`` and the decoder's are in both, see fairseq_lnplugin/transformer_ln_study.py.)

    Returns:
        str: what the checkpoint is, for a reader.

    Raises:
        ValueError: it is no checkpoint of ours, with the reason.

    """
    sys.path.insert(0, str(ROOT))
    import torch  # in a process of its own: see processes.py

    from fairseq_lnplugin.transformer_ln_study import add_ln_study_args

    try:
        state = torch.load(source, map_location="cpu")
        cfg, model = state["cfg"], state["cfg"]["model"]
        arch, num_updates = model.arch, state["optimizer_history"][-1]["num_updates"]
    except Exception as error:  # torch and pickle raise all sorts
        raise ValueError(f"not a checkpoint of fairseq-train: {str(error).splitlines()[0][:100]}") from error
    if not arch.startswith("transformer_ln_study"):
        raise ValueError(f"a checkpoint of --arch {arch}, not of transformer_ln_study")
    about = (
        f"{arch}, {model.ln_position}-LN, {model.encoder_layers}-{model.decoder_layers} layers, "
        f"trained in {model.compute_dtype} for {num_updates:,} updates"
    )
    flags = argparse.ArgumentParser()
    add_ln_study_args(flags)
    for flag in vars(flags.parse_args([])):
        delattr(model, flag)
    model.arch = model._name = "transformer"
    for group in ("criterion", "optimizer"):  # the Namespace holds the whole command line, too
        cfg[group]["_name"] = cfg[group]["_name"].removeprefix("fused_")
        setattr(model, group, cfg[group]["_name"])
    model.user_dir = cfg["common"]["user_dir"] = None
    torch.save(state, target)
    return about


def converted(checkpoint, target):
    """:func:`write_stock_checkpoint` in a process of its own; returns what it returns.

    Raises:
        SystemExit: the checkpoint is not there, or cannot be converted.

    """
    if not checkpoint.is_file():
        raise failure(f"there is no file {checkpoint}; give a checkpoint of fairseq-train to --checkpoint")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(write_stock_checkpoint, checkpoint, target).result()
        except (ValueError, OSError, BrokenProcessPool) as error:
            raise failure(f"cannot convert {checkpoint} ({error}); give another --checkpoint") from error


def stock_arguments(data_bin, checkpoint, subset):
    """What follows the Python program for stock; ``checkpoint``: the converted one."""
    return ["-m", "fairseq_cli.generate", data_bin, "--path", checkpoint, "--gen-subset", subset, *COMMON]


def shard_arguments(sentences, shards, shard):
    """What makes one shard of a command (world size and rank only cut the batches into shards)."""
    cut = ("--distributed-world-size", str(shards), "--distributed-rank", str(shard))
    return ["--batch-size", str(-(-sentences // (2 * shards))), *cut]


def our_arguments(data_bin, checkpoint, subset, dtype):
    """What follows the Python program for ours."""
    ours = ("--user-dir", "fairseq_lnplugin", "--model-overrides", f"{{'compute_dtype': '{dtype}'}}")
    return [*stock_arguments(data_bin, checkpoint, subset), *ours]


def shards_of(sentences):
    """Shards and threads of each: one shard a core, but none without a batch."""
    shards = min(cores(), -(-sentences // SENTENCES_A_SHARD))
    return shards, max(1, cores() // shards)


def decode(side, commands, variables, folder):
    """Run the commands at once and wait for all. ``variables``: their environment. ``folder``: for their output.

    Returns:
        dict: ``wall_seconds`` until the last ended, ``translated_seconds`` of the slowest by its own log, ``peak_gib``
        of all together, and ``hypotheses`` and ``references``, sentence id to text.

    Raises:
        SystemExit: one of them failed.

    """
    logs = [Path(folder) / f"{side}{i}.log" for i in range(len(commands))]
    began = time.perf_counter()
    with ExitStack() as stack:
        files = [stack.enter_context(open(log, "wb")) for log in logs]
        processes = [
            stack.enter_context(Process(command, variables, file)) for command, file in zip(commands, files, strict=True)
        ]
        for process in processes:
            process.wait()
        wall_seconds = time.perf_counter() - began
    hypotheses, references, translated = {}, {}, []
    for process, log in zip(processes, logs, strict=True):
        text = log.read_text(encoding="utf-8", errors="replace")
        found = TRANSLATED.search(text)
        if process.status != 0 or not found:
            raise failure(
                f"fairseq-generate ({side}) stopped with status {process.status} ({reason(text)}); "
                "check that DATA_BIN is the folder that the checkpoint was trained on"
            )
        translated.append(float(found[2]))
        for line in text.split("\n"):  # not splitlines: a sentence may hold other line ends
            kind, _, rest = line.partition("-")
            number, _, sentence = rest.partition("\t")
            if kind == "H" and number.isdecimal():
                hypotheses[int(number)] = sentence.partition("\t")[2]
            elif kind == "T" and number.isdecimal():
                references[int(number)] = sentence
    return {
        "wall_seconds": wall_seconds,
        "translated_seconds": max(translated),
        "peak_gib": sum(process.peak_gib for process in processes),
        "hypotheses": hypotheses,
        "references": references,
    }


def measure(data, subset, dtype, checkpoint, stock_checkpoint, pairs):
    """All pairs; returns side to the list of what :func:`decode` returned.

    Raises:
        SystemExit: fairseq-generate failed, or left sentences out.

    """
    sentences = data.pairs(subset)
    shards, threads = shards_of(sentences)
    stock = [sys.executable, *stock_arguments(str(data.folder), str(stock_checkpoint), subset)]
    ours = [sys.executable, *our_arguments(str(data.folder), str(checkpoint), subset, dtype)]
    in_shards = [shard_arguments(sentences, shards, shard) for shard in range(shards)]
    sides = {
        "stock": ([stock], environment(cores(), **LOADING)),
        "stock in shards": ([stock + more for more in in_shards], environment(threads, **LOADING)),
        "ours": ([ours + more for more in in_shards], environment(threads)),
    }
    runs = {side: [] for side in sides}
    for pair in range(1, pairs + 1):
        for side, (commands, variables) in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                run = decode(side, commands, variables, folder)
            runs[side].append(run)
            if not run["hypotheses"].keys() == run["references"].keys() == set(range(sentences)):
                raise failure(
                    f"fairseq-generate ({side}) translated {len(run['hypotheses'])} of "
                    f"the {sentences} sentences of {subset}; there must be no pair too long for the model in it"
                )
            say(
                f"pair {pair} of {pairs}, {side}: {run['wall_seconds']:.1f} s, of which translating "
                f"{run['translated_seconds']:.1f} s, {run['peak_gib']:.1f} GiB"
            )
    return runs


def bleu(run):
    """Tokenized BLEU of what :func:`decode` returned."""
    import sacrebleu

    order = sorted(run["hypotheses"])
    hypotheses, references = ([run[key][number] for number in order] for key in ("hypotheses", "references"))
    return sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none", force=True).score


def ratio(stock, ours, key):
    """Median and range over the pairs of stock / ours."""
    return results_file.spread([a[key] / b[key] for a, b in zip(stock, ours, strict=True)])


def summary(runs):
    """The numbers of a row, as results.json keeps them. ``runs``: as :func:`measure` returns them."""
    keys = ("wall_seconds", "translated_seconds", "peak_gib")
    stock, shards, ours = runs["stock"], runs["stock in shards"], runs["ours"]
    same = [stock[0]["hypotheses"][number] == text for number, text in ours[0]["hypotheses"].items()]
    return {
        "goal": GOAL,
        "pairs": len(stock),
        "sentences": len(same),
        "sides": {side: {key: results_file.spread([run[key] for run in runs[side]]) for key in keys} for side in runs},
        "ratio": {key: ratio(stock, ours, key) for key in keys}
        | {"stock in shards": {key: ratio(shards, ours, key) for key in keys}},
        "bleu": {side: round(bleu(runs[side][0]), 3) for side in ("stock", "ours")},
        "same_translations": round(sum(same) / len(same), 4),
    }


def with_threads(count):
    """The variables that give a command so many threads."""
    return [f"OMP_NUM_THREADS={count}", f"MKL_NUM_THREADS={count}"]


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_bin", metavar="DATA_BIN", help="folder made by fairseq-preprocess")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="checkpoint of transformer_ln_study")
    parser.add_argument("--gen-subset", default="test1", metavar="NAME", help="default: test1")
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16"), help="of ours (default: the faster one here)")
    results_file.add_arguments(parser)
    args = parser.parse_args()
    data = results_file.Data(args.data_bin, args.data_name)
    if data.languages is None:
        raise failure(f"{args.data_bin} holds one text and nothing to translate; give a folder of two languages")
    sentences = data.pairs(args.gen_subset)
    results_file.begin(args.out)
    name = f"{data.name}, {args.gen_subset}"
    command = ["python", "benchmarks/decode_speed.py", data.name, "--checkpoint", args.checkpoint.name]
    command += ["--gen-subset", args.gen_subset, "--pairs", str(args.pairs)]
    dtype = args.compute_dtype or results_file.faster_dtype()
    if args.compute_dtype:
        name += f", {dtype}"
        command += ["--compute-dtype", dtype]
    had = results_file.conditions(data, command, environment(cores()))
    with tempfile.TemporaryDirectory() as folder:
        stock_checkpoint = Path(folder) / "stock.pt"
        about = converted(args.checkpoint.resolve(), stock_checkpoint)
        numbers = summary(measure(data, args.gen_subset, dtype, args.checkpoint.resolve(), stock_checkpoint, args.pairs))
    shards, threads = shards_of(sentences)
    numbers |= {"checkpoint": about, "shards": shards, "threads_of_a_shard": threads, "conditions": had}
    of_shard = shard_arguments(sentences, shards, "SHARD")
    stock = ["python", *stock_arguments(data.name, "stock.pt", args.gen_subset)]
    ours = ["python", *our_arguments(data.name, args.checkpoint.name, args.gen_subset, dtype)]
    loading = [f"{name}={value}" for name, value in LOADING.items()]
    numbers["commands"] = {
        "stock": results_file.shown([*with_threads(cores()), *loading, *stock]),
        "stock in shards": results_file.shown([*with_threads(threads), *loading, *stock, *of_shard]),
        "ours": results_file.shown([*with_threads(threads), *ours, *of_shard]),
    }
    results_file.save(args.out, "decoding", name, numbers)
    keys = ("wall_seconds", "translated_seconds")
    ratios = {key: results_file.ratio_text(numbers["ratio"][key]).replace("**", "") for key in keys}
    scores = numbers["bleu"]
    print(
        f"{name}: stock / ours {ratios['wall_seconds']} for the whole command, "
        f"{ratios['translated_seconds']} for translating; "
        f"BLEU {scores['stock']:.2f} (stock, float32) and {scores['ours']:.2f} (ours, {dtype})"
    )


if __name__ == "__main__":
    end_in_order()
    try:
        main()
    except KeyboardInterrupt:
        raise failure("interrupted; nothing was written") from None
