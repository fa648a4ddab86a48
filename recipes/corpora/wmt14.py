"""Make the WMT14 En-De corpus of the paper (appendix A.1) from local copies of its parts, or from an address.

    python recipes/corpora/wmt14.py --out DIR (--from PATH | --download ADDRESS [--cache DIR]) [--merges N]

Train is Europarl v7, Common Crawl and News Commentary v9 (any of them will do, and corpus.json names them), valid the whole of
newstest2013 (3,000 lines) and test the whole of newstest2014 (3,003 lines; the filtered set of 2,737 lines is refused). PATH is
a tar archive or a folder, searched for:

1. the official archives, in a folder: training-parallel-europarl-v7.tgz, training-parallel-commoncrawl.tgz,
   training-parallel-nc-v9.tgz, dev.tgz, test-full.tgz;
2. their members, in any folder: `europarl-v7.de-en.{en,de}`, `commoncrawl.de-en.{en,de}`, `news-commentary-v9.de-en.{en,de}`,
   `newstest2013.{en,de}` or its SGML, `newstest2014-deen-{src.en,ref.de}.sgm`;
3. other text: `train[.NAME].{en,de}`, `newstest2013.{en,de}`, `newstest2014.{en,de}`.

All text is raw but for files whose name ends in `.tok` before the language: these came tokenized with Moses' rules, perhaps
truecased. They are detokenized, get a capital at the start of each sentence where most lines lack it, and are then tokenized
like all others, so that there is one form. Hyphens stay inside words (no `@-@`), which is what compound-split BLEU is made for.

ADDRESS is where `wmt13/` and `wmt14/` with the official archives lie, such as http://statmt.org. Licence: released by the WMT
organizers for research; do not pass it on. The whole takes hours and several GB of memory, BPE most of it.

Two examples::

    python recipes/corpora/wmt14.py --out data/wmt14-bpe37000 --download http://statmt.org --cache data/wmt14-archives
    python recipes/corpora/wmt14.py --out data/wmt14-bpe8000 --from wmt14-en-de.tar.gz --merges 8000
"""

import argparse
import html
import random
import re
import tempfile
from collections import Counter
from pathlib import Path, PurePosixPath

import archives
import parallel_text
from parallel_text import CorpusError, Pair

LANGS = ("en", "de")
MERGES = 37000
MAX_WORDS = 250  # of either side, as fairseq's WMT14 preparation
MAX_RATIO = 9  # longer side / shorter side: Moses' usual one; fairseq's 1.5 leaves much less than the paper's 4.5 million pairs
TRAIN = {
    "europarl-v7.de-en": "Europarl v7",
    "commoncrawl.de-en": "Common Crawl",
    "news-commentary-v9.de-en": "News Commentary v9",
}
ARCHIVES = {  # below the address -> the text in it
    "wmt13/training-parallel-europarl-v7.tgz": "europarl-v7.de-en",
    "wmt13/training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
    "wmt14/training-parallel-nc-v9.tgz": "news-commentary-v9.de-en",
    "wmt14/dev.tgz": "newstest2013",
    "wmt14/test-full.tgz": "newstest2014",
}
HELD_OUT = {"valid": ("newstest2013", 3000), "test": ("newstest2014", 3003)}
FILTERED_LINES = 2737  # of newstest2014 as it was first published
PLAIN = re.compile(rf"(?P<text>{'|'.join(map(re.escape, TRAIN))}|train(?:\..+)?|newstest201[34](?:\.tok)?)\.(?P<lang>en|de)")
SGML = re.compile(r"(?P<text>newstest201[34](?:-deen)?)-(?:src\.(?=en)|ref\.(?=de))(?P<lang>en|de)\.sgm")
LAYOUTS = (
    "--from takes a folder with the official archives or their members, or an archive with train.NAME.{en,de}, "
    "newstest2013.{en,de} and newstest2014.{en,de}"
)


# ----------------------------------------------------------------------------------------------------- finding the files


def named(file: str) -> tuple[str, str] | None:
    """The text that a file name stands for, `.sgm` at the end of an SGML one, and its language; None for any other file."""
    if match := PLAIN.fullmatch(file):
        return match["text"], match["lang"]
    if match := SGML.fullmatch(file):
        return f"{match['text']}.sgm", match["lang"]
    return None


def unpack_official(folder: Path, scratch: Path) -> None:
    """Unpack what we need of the official archives in `folder`, and refuse one that does not hold it."""
    for address, text in ARCHIVES.items():
        archive = folder / PurePosixPath(address).name
        if archive.is_file():
            parallel_text.say(f"unpacking {archive} ...")
            target = scratch / text
            archives.unpack(archive, target, lambda name: named(name) is not None)
            if not any(name.startswith(text) for name in texts([target])):
                raise CorpusError(f"{archive} holds no {text} in English and German; is it another archive? Get it again")


def texts(roots: list[Path]) -> dict[str, dict[str, Path]]:
    """Text -> language -> file, of all files below the folders; a text in two places is taken from the first.

    Half a training text is refused; half a news test does not count, since its archives have the same set in several forms.
    """
    found: dict[str, dict[str, Path]] = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            if (what := named(path.name)) and path.is_file():
                found.setdefault(what[0], {}).setdefault(what[1], path)
    for text, paths in list(found.items()):
        if missing := [lang for lang in LANGS if lang not in paths]:
            if not text.startswith("newstest"):
                there = next(iter(paths.values()))
                raise CorpusError(f"{there} is there without its {missing[0]} side; {LAYOUTS}")
            del found[text]
    return found


def held_out(found: dict[str, dict[str, Path]], name: str) -> str:
    """Which of the found texts is this news test: as plain text before SGML before tokenized text."""
    for text in (name, f"{name}.sgm", f"{name}-deen.sgm", f"{name}.tok"):
        if text in found:
            return text
    raise CorpusError(f"found no {name} in English and German; {LAYOUTS}")


# -------------------------------------------------------------------------------------------------------- reading them


def read(text: str, paths: dict[str, Path]) -> list[Pair]:
    """Raw pairs (English, German) of a text, whatever form its files have."""
    if text.endswith(".sgm"):
        sides = [[html.unescape(line) for line in parallel_text.segments(paths[lang])] for lang in LANGS]
    else:
        sides = [parallel_text.read_lines(paths[lang]) for lang in LANGS]
    parallel_text.check_equal(str(paths["en"]), sides[0], str(paths["de"]), sides[1])
    if text.endswith(".tok"):
        sides = [untokenized(side, lang) for side, lang in zip(sides, LANGS, strict=True)]
    return list(zip(*sides, strict=True))


def untokenized(lines: list[str], lang: str) -> list[str]:
    """Raw lines of tokenized ones: tokens joined, escapes undone, and capitals put back where the text is truecased."""
    from sacremoses import MosesDetokenizer

    moses = MosesDetokenizer(lang)
    truecased = sum(line[:1].islower() for line in lines) > sum(line[:1].isupper() for line in lines)
    tokens = (sentence_case(line.split()) if truecased else line.split() for line in lines)
    return [moses.detokenize(line, unescape=True) for line in tokens]


def sentence_case(tokens: list[str]) -> list[str]:
    """Tokens with a capital at the start of the line and after each full stop, question or exclamation mark."""
    result, begins = [], True
    for token in tokens:
        result.append(token[:1].upper() + token[1:] if begins else token)
        begins = token in (".", "?", "!") or (begins and not token[:1].isalpha())  # a quotation mark begins no sentence
    return result


def check_lines(text: str, pairs: list[Pair], lines: int) -> None:
    """Refuse a news test that is not whole."""
    if len(pairs) == lines:
        return
    if text.startswith("newstest2014") and len(pairs) == FILTERED_LINES:
        raise CorpusError(
            f"{text} has {FILTERED_LINES:,} lines, the filtered set; papers score the whole one of {lines:,}: take it from "
            "test-full.tgz"
        )
    raise CorpusError(f"{text} has {len(pairs):,} lines, not the {lines:,} of the whole set; get it again")


def make(args: argparse.Namespace) -> parallel_text.Corpus:
    """Find, read and check the text."""
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder, archives.cache_folder(args.cache) as cache:
        scratch = Path(folder)
        given = getattr(args, "from") or cache
        if args.download:
            for archive in ARCHIVES:
                archives.download(f"{args.download.rstrip('/')}/{archive}", cache)
        if not given.exists():
            raise CorpusError(f"{given}: no such file or folder; {LAYOUTS}")
        if given.is_dir():
            unpack_official(given, scratch)
            found = texts([given, scratch])
        else:
            archives.unpack(given, scratch, lambda name: named(name) is not None)
            found = texts([scratch])
        chosen = {split: held_out(found, name) for split, (name, _) in HELD_OUT.items()}
        train = [text for text in found if not text.startswith("newstest")]
        if not train:
            raise CorpusError(f"found no training text; {LAYOUTS}")
        raw = {text: read(text, found[text]) for text in [*chosen.values(), *train]}
        for split, (_, lines) in HELD_OUT.items():
            check_lines(chosen[split], raw[chosen[split]], lines)
        dropped: Counter[str] = Counter()
        for text, pairs in raw.items():
            parallel_text.check_languages(pairs, *LANGS)
            if text in train:
                names = [str(found[text][lang]) for lang in LANGS]
                raw[text] = parallel_text.without_processed(pairs, names, dropped)
            else:
                for side, lang in enumerate(LANGS):
                    parallel_text.refuse_processed((pair[side] for pair in pairs), str(found[text][lang]))
    counts = ", ".join(f"{TRAIN.get(text, text)} ({len(raw[text]):,})" for text in train)
    parallel_text.say(f"tokenizing {counts}, newstest2013, newstest2014 ...")
    splits = {"train": parallel_text.tokenize([pair for text in train for pair in raw[text]], *LANGS, lowercase=False)}
    splits["train"] = parallel_text.clean(splits["train"], dropped, MAX_WORDS, MAX_RATIO)
    random.Random(1).shuffle(splits["train"])  # so that the first pairs, which a preset may take, are of all parts
    for split, text in chosen.items():
        splits[split] = parallel_text.tokenize(raw[text], *LANGS, lowercase=False)
    return parallel_text.Corpus(
        name="wmt14-en-de",
        source_lang="en",
        target_lang="de",
        origin=f"WMT14 translation task, from {args.download or given.name}; train (pairs): {counts}; valid: newstest2013, "
        "test: newstest2014, both whole",
        licence="released by the WMT organizers for research; not to be passed on",
        tokenizer=parallel_text.tokenizer_name(),
        lowercase=False,
        splits=splits,
        merges=args.merges,
        note=note(train, list(raw)),
        dropped=dropped,
    )


def note(train: list[str], used: list[str]) -> str:
    """What is another text than the paper's, in one line."""
    notes = []
    if missing := [name for text, name in TRAIN.items() if text not in train]:
        notes.append(f"train is a part of WMT14's about 4.5 million pairs: the whole of {', '.join(missing)} is not in it")
    if tokenized := [text for text in used if text.endswith(".tok")]:
        notes.append(f"detokenized and tokenized again: {', '.join(tokenized)}")
    return "; ".join(notes)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = result.add_mutually_exclusive_group(required=True)
    where.add_argument("--from", type=Path, metavar="PATH", help="folder or tar archive that holds the texts")
    where.add_argument("--download", metavar="ADDRESS", help="where wmt13/ and wmt14/ with the official archives lie")
    add = result.add_argument
    add("--cache", type=Path, metavar="DIR", help="folder to keep the downloaded archives in (default: not kept)")
    add("--merges", type=int, default=MERGES, metavar="N", help=f"joint BPE merges (default {MERGES})")
    return result


if __name__ == "__main__":
    parallel_text.run(make, parser())
