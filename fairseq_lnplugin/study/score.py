"""BLEU of fairseq-generate's translations against the original reference file, as a row of scores.tsv.

Two numbers side by side, each with its sacrebleu signature: ``bleu`` on the tokenized text, which is what papers on
IWSLT14 print (lower-case where the corpus is), and ``sacrebleu`` with both sides detokenized alike by sacremoses. With
``--compound-split``, ``bleu`` is what papers on WMT14 En-De print: words are taken apart at their hyphens, on both sides.

The translations (lines ``H-id<TAB>score<TAB>text``) may be spread over several files. Every id from 0 to the number of
reference lines - 1 has to be there exactly once, so the outputs of ``--nbest 2`` and a shard given twice are refused.
"""

import argparse
import os
import re
import sys

from sacrebleu.metrics import BLEU
from sacremoses import MosesDetokenizer

from fairseq_lnplugin.cli import whole_number
from fairseq_lnplugin.study.run_folder import SCORE_COLUMNS
from fairseq_lnplugin.whole_file import replacing

COMPOUND = re.compile(r"(\S)-(\S)")  # of "a-b-c" only the first hyphen, as in the scores that papers print
UNKNOWN = re.compile(r"\s*<+unk>+\s*")
COMPOUNDS_SPLIT = "|compounds:split"  # at the end of the signature
LINE = re.compile(r"([HT])-(\d+)\t(.*)", re.DOTALL)
NAMED = 5  # how many ids an error sentence names


def add_arguments(parser):
    """The flags of ``fairseq-ln score``."""
    parser.add_argument("outputs", nargs="+", metavar="GENERATE_OUTPUT", help="output of fairseq-generate, all shards")
    parser.add_argument("--reference", required=True, metavar="FILE", help="reference before BPE, a sentence a line")
    parser.add_argument("--lang", required=True, metavar="CODE", help="language of the reference, such as en")
    parser.add_argument("--lowercase", action="store_true", help="compare in lower case, for a lower-cased corpus")
    parser.add_argument("--compound-split", action="store_true", help="tokenized BLEU with hyphenated words taken apart")
    parser.add_argument("--subset", required=True, type=one_word, metavar="NAME", help="what was translated, as test")
    parser.add_argument("--epoch", required=True, type=whole_number(0), metavar="N", help="epoch of the checkpoint")
    parser.add_argument("--updates", required=True, type=whole_number(0), metavar="N", help="updates up to the checkpoint")
    parser.add_argument("--checkpoint", required=True, type=one_word, metavar="NAME", help="the checkpoint's file name")
    parser.add_argument("--out", required=True, metavar="FILE", help="scores.tsv, whose row of this epoch and subset is replaced")


def one_word(text):
    """An argument that fits a cell of the table."""
    if not text or re.search(r"\s", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name without spaces")
    return text


def run(args):
    """Score, put the row into ``args.out`` and say it on standard output.

    Raises:
        SystemExit: a file cannot be read, is not what it should be, or the translations do not match the reference.

    """
    references = read_lines(args.reference)
    if not references:
        fail(f"{args.reference} is empty")
    rows = read_scores(args.out)  # before the work
    hypotheses = read_hypotheses(args.outputs, references, args.reference)
    row = {
        "epoch": args.epoch,
        "updates": args.updates,
        "subset": args.subset,
        "lines": len(references),
        "checkpoint": args.checkpoint,
        **scores(hypotheses, references, args.lang, args.lowercase, args.compound_split),
    }
    rows[args.epoch, args.subset] = {name: str(row[name]) for name in SCORE_COLUMNS}
    write_scores(args.out, rows)
    print(
        f"epoch {args.epoch}, {args.subset}, {len(references)} lines: BLEU {row['bleu']} ({row['bleu_signature']}), "
        f"sacreBLEU {row['sacrebleu']} ({row['sacrebleu_signature']})"
    )


def scores(hypotheses, references, lang, lowercase, compound_split=False):
    """Both scores in percent (two decimals, as text) with their signatures.

    ``hypotheses``, ``references``: tokenized sentences, as many of one as of the other. ``compound_split``: see
    :func:`split_compounds`; the signature of ``bleu`` then ends in ``|compounds:split``.
    """
    bleu = BLEU(lowercase=lowercase, tokenize="none", force=True)  # force: that the text is tokenized is meant
    split = split_compounds if compound_split else list
    tokenized = bleu.corpus_score(split(hypotheses), [split(references)]).score
    detokenizer = MosesDetokenizer(lang=lang)
    hypotheses, references = (
        [detokenizer.detokenize(line.split(), unescape=True) for line in lines] for lines in (hypotheses, references)
    )
    for what, lines in (("translations", hypotheses), ("reference lines", references)):
        escaped = sum(re.search(r"&(apos|quot|amp|#\d+);", line) is not None for line in lines)
        if escaped:
            warn(f"{escaped} {what} hold &apos; or the like after detokenization; was the text tokenized twice?")
    sacrebleu = BLEU(lowercase=lowercase, tokenize="13a", force=True)
    detokenized = sacrebleu.corpus_score(hypotheses, [references]).score
    return {
        "bleu": f"{tokenized:.2f}",
        "bleu_signature": f"{bleu.get_signature()}{COMPOUNDS_SPLIT if compound_split else ''}",
        "sacrebleu": f"{detokenized:.2f}",
        "sacrebleu_signature": str(sacrebleu.get_signature()),
    }


def split_compounds(sentences):
    """Sentences whose hyphenated words are three tokens, ``rich ##AT##-##AT## text`` for ``rich-text`` (Vaswani et al. 2017)."""
    return [COMPOUND.sub(r"\1 ##AT##-##AT## \2", sentence) for sentence in sentences]


def read_hypotheses(paths, references, reference_path):
    """The translations in the order of the reference.

    Raises:
        SystemExit: an id is missing, double or beyond the reference, BPE is left in them, or they were made from
            data whose own targets are not these references.

    """
    hypotheses, origin, targets = {}, {}, {}
    for path in paths:
        for line in read_lines(path):
            match = LINE.fullmatch(line)
            if not match:
                continue
            kind, number, rest = match[1], int(match[2]), match[3]
            if kind == "T":
                targets[number] = rest
                continue
            if number in hypotheses:
                fail(
                    f"the translation of sentence {number} is there twice, in {origin[number]} and in {path}; "
                    "give every shard once, and run fairseq-generate with --nbest 1"
                )
            hypotheses[number], origin[number] = rest.partition("\t")[2], path
        if path not in origin.values():
            fail(f"{path} holds no line H-...; it is not the whole output of fairseq-generate (without --quiet)")
    beyond = sorted(number for number in hypotheses if number >= len(references))
    if beyond:
        fail(
            f"{origin[beyond[0]]} translates {named(beyond)}, and {reference_path} has only {len(references)} lines; "
            "give the reference of the subset that was translated"
        )
    missing = [number for number in range(len(references)) if number not in hypotheses]
    if missing:
        fail(
            f"{named(missing)} of {reference_path} ({len(references)} lines) lack a translation in {', '.join(paths)}; "
            "give all shards, and run fairseq-generate with --required-batch-size-multiple 1"
        )
    for number, text in sorted(hypotheses.items()):
        if "@@ " in text + " ":
            fail(f"sentence {number} in {origin[number]} still has BPE marks @@; run fairseq-generate with --remove-bpe")
    others = [number for number, text in sorted(targets.items()) if not same_sentence(text, references[number])]
    if 2 * len(others) > len(targets):
        fail(
            f"{reference_path} is not the reference of these translations: the target of sentence {others[0]} in "
            f"{origin[others[0]]}, and of {len(others) - 1} more, is another one"
        )
    return [hypotheses[number] for number in range(len(references))]


def same_sentence(target, reference):
    """Whether fairseq-generate's target line is the reference, where it is in the dictionary.

    An unknown subword stands for any text, and may have stood at the front of a word that goes on after it.
    """
    first, *rest = UNKNOWN.split(" ".join(target.lower().split()))
    reference = " ".join(reference.lower().split())
    if not rest:
        return first == reference
    at = len(first)
    for part in rest[:-1]:
        at = reference.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return reference.startswith(first) and reference.endswith(rest[-1]) and at + len(rest[-1]) <= len(reference)


def named(numbers):
    """``sentences 3, 4, 5 and 20 more``."""
    shown = ", ".join(map(str, numbers[:NAMED]))
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"sentence{'s' if len(numbers) > 1 else ''} {shown}{more} (counted from 0)"


def read_lines(path):
    """The lines of a UTF-8 file without their ends; only a line feed ends a line, as for fairseq."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [line.rstrip("\r\n") for line in file]
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror})")
    except UnicodeDecodeError as error:
        fail(f"{path} is not UTF-8 text (byte {error.start})")


def read_scores(path):
    """The rows of scores.tsv by epoch and subset; none where there is no file yet.

    Raises:
        SystemExit: the file is not such a table.

    """
    if not os.path.exists(path):
        return {}
    header, *lines = read_lines(path) or [""]
    rows = [line.split("\t") for line in lines]
    if header.split("\t") != SCORE_COLUMNS or any(len(row) != len(SCORE_COLUMNS) or not row[0].isdecimal() for row in rows):
        fail(f"{path} exists and is not a table with the columns {' '.join(SCORE_COLUMNS)}; move it away")
    rows = [dict(zip(SCORE_COLUMNS, row, strict=True)) for row in rows]
    return {(int(row["epoch"]), row["subset"]): row for row in rows}


def write_scores(path, rows):
    """Write the table, sorted by epoch and subset, whole or not at all."""
    lines = [SCORE_COLUMNS, *([rows[key][name] for name in SCORE_COLUMNS] for key in sorted(rows))]
    try:
        with replacing(path) as new, open(new, "w", encoding="utf-8", newline="\n") as file:
            file.writelines("\t".join(line) + "\n" for line in lines)
    except OSError as error:
        fail(f"{path} cannot be written ({error.strerror})")


def warn(sentence):
    """Say it on standard error and go on."""
    print(f"fairseq-ln score: {sentence}", file=sys.stderr)


def fail(sentence):
    """End the command with one sentence."""
    raise SystemExit(f"fairseq-ln score: {sentence}")
