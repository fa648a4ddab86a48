"""Make a corpus folder from your own parallel text: three pairs of raw files, line n of one translating line n of the other.

    python recipes/corpora/own.py --out DIR --src de --tgt en --train PREFIX --valid PREFIX --test PREFIX

A PREFIX stands for the two files PREFIX.de and PREFIX.en. The text must be raw: not tokenized, not BPE'd. Blank, over-long
and lopsided pairs leave train and valid on both sides and are counted; test stays as it is.

Two examples::

    python recipes/corpora/own.py --out data/mine --src de --tgt en --train raw/train --valid raw/dev --test raw/test
    python recipes/corpora/own.py --out data/fr-en --src fr --tgt en --train a/train --valid a/valid --test a/test \
        --merges 8000 --lowercase
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import parallel_text


def lang(text: str) -> str:
    """A language code that can be the end of a file name, for argparse."""
    if not re.fullmatch(r"[A-Za-z]+([_-][A-Za-z]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a language code such as de or pt_BR")
    return text


def make(args: argparse.Namespace) -> parallel_text.Corpus:
    """Read, check, tokenize and clean the three splits."""
    if args.src == args.tgt:
        raise parallel_text.CorpusError(f"--src and --tgt are both {args.src}; give two languages")
    for flag, value in (("--max-words", args.max_words), ("--max-ratio", args.max_ratio)):
        if not value >= 1:  # NaN is none either
            raise parallel_text.CorpusError(f"{flag} {value:g} would leave no pair; give 1 or more")
    prefixes = {"train": args.train, "valid": args.valid, "test": args.test}
    raw = {split: parallel_text.read_pairs(prefix, args.src, args.tgt) for split, prefix in prefixes.items()}
    dropped: Counter[str] = Counter()
    for split, pairs in raw.items():  # every file is checked before the minutes of tokenizing
        names = [f"{prefixes[split]}.{code}" for code in (args.src, args.tgt)]
        parallel_text.check_languages(pairs, args.src, args.tgt)
        if split != "test":
            raw[split] = parallel_text.without_processed(pairs, names, dropped)
        else:
            for side, name in enumerate(names):
                parallel_text.refuse_processed((pair[side] for pair in pairs), name)
    splits = {}
    for split, pairs in raw.items():
        parallel_text.say(f"tokenizing {len(pairs):,} pairs of {split} ...")
        tokenized = parallel_text.tokenize(pairs, args.src, args.tgt, args.lowercase)
        keep_all = split == "test"
        splits[split] = tokenized if keep_all else parallel_text.clean(tokenized, dropped, args.max_words, args.max_ratio)
    return parallel_text.Corpus(
        name=args.name,
        source_lang=args.src,
        target_lang=args.tgt,
        origin=", ".join(f"{split}: {prefix.name}.{{{args.src},{args.tgt}}}" for split, prefix in prefixes.items()),
        licence="your own text",
        tokenizer=parallel_text.tokenizer_name(),
        lowercase=args.lowercase,
        splits=splits,
        merges=args.merges,
        dropped=dropped,
    )


def inputs(args: argparse.Namespace) -> dict[str, list[Path]]:
    """The two files of each prefix."""
    prefixes = {"--train": args.train, "--valid": args.valid, "--test": args.test}
    return {flag: parallel_text.sides(prefix, args.src, args.tgt) for flag, prefix in prefixes.items()}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--src", required=True, type=lang, metavar="LANG", help="source language, the files' suffix")
    result.add_argument("--tgt", required=True, type=lang, metavar="LANG", help="target language, the files' suffix")
    for split in ("train", "valid", "test"):
        result.add_argument(f"--{split}", required=True, type=Path, metavar="PREFIX", help=f"raw text of {split}")
    result.add_argument("--name", default="own", help="name in reports (default own)")
    result.add_argument("--merges", type=int, default=10000, metavar="N", help="joint BPE merges (default 10000)")
    result.add_argument("--lowercase", action="store_true", help="lower-case both sides, as IWSLT14's preparation does")
    result.add_argument(
        "--max-words", type=int, default=parallel_text.MAX_WORDS, metavar="N", help="longest side kept (default 175)"
    )
    result.add_argument(
        "--max-ratio", type=float, default=parallel_text.MAX_RATIO, metavar="R", help="longer / shorter side (default 1.5)"
    )
    return result


if __name__ == "__main__":
    parallel_text.run(make, parser(), inputs=inputs)
