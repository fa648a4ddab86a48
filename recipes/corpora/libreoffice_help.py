"""Make a real De-En corpus that everybody may fetch: the help texts of LibreOffice, from two Debian or Ubuntu packages.

    python recipes/corpora/libreoffice_help.py --out DIR [--pairs N] [--max-words N] [--merges N] [--cache DIR]

`apt-get download` fetches libreoffice-help-de and libreoffice-help-en-us (5 MB, MPL-2.0; nothing is installed, no root
needed; where that fails, root's `apt-get update` is run and it is tried once more), `dpkg-deb` unpacks them. Paragraphs of
the two help trees that carry the same id are translations of each other; they are cut into sentences where both sides give as
many. The variant for macOS (`<span class="MAC">`) is left out. Valid and test are held out by English sentence, by a hash, so
the same packages give the same corpus everywhere.

Exit status 3: the packages cannot be had here; `grammar.py` makes a corpus without any download.

Two examples::

    python recipes/corpora/libreoffice_help.py --out data/libreoffice-help
    python recipes/corpora/libreoffice_help.py --out data/short --pairs 12000 --max-words 20 --from ~/Downloads/*.deb
"""

import argparse
import gzip
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import archives
import parallel_text

PACKAGES = ("libreoffice-help-de", "libreoffice-help-en-us")
HELP = Path("usr/share/libreoffice/help")
NOT_REACHED = 3  # exit status
ADVICE = "give the two .deb files with --from, run `apt-get update` first, or use grammar.py"
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}  # no end tag
SENTENCE_END = re.compile(r'(?<=[.!?])\s+(?=[A-ZÄÖÜ"„“(])')


class Paragraphs(HTMLParser):
    """Text of the `<p>` and `<h1>`..`<h6>` of a help page whose id starts with `par_`: `found` maps id to text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.found: dict[str, str] = {}
        self.open: tuple[str, str] | None = None  # tag and id of the paragraph that we are in
        self.text: list[str] = []
        self.mac_depth = 0  # how many <span>s deep inside a macOS variant; 0: not in one

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a paragraph, or go into or deeper into a macOS variant."""
        values = {name: value or "" for name, value in attrs}
        if re.fullmatch("p|h[1-6]", tag):
            is_aligned = values.get("id", "").startswith("par_")
            self.open = (tag, values["id"]) if is_aligned else None
            self.text, self.mac_depth = [], 0
        elif tag == "span" and (self.mac_depth or "MAC" in values.get("class", "").split()):
            self.mac_depth += 1
        elif tag in VOID:
            self.text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        """Close a paragraph, or come out of a macOS variant by one span."""
        if tag == "span" and self.mac_depth:
            self.mac_depth -= 1
        elif self.open and tag == self.open[0]:
            if text := " ".join("".join(self.text).split()):
                self.found.setdefault(self.open[1], text)
            self.open = None

    def handle_data(self, data: str) -> None:
        """Keep text outside the macOS variants."""
        if not self.mac_depth:
            self.text.append(data)


def paragraphs(page: Path) -> dict[str, str]:
    """Paragraph id -> text of one help page."""
    parser = Paragraphs()
    parser.feed(parallel_text.read_text(page))
    parser.close()
    return parser.found


def extract(help_folder: Path) -> list[parallel_text.Pair]:
    """Unique (German, English) pairs of the help trees `de` and `en-US`, in the order of the pages."""
    german, english = help_folder / "de", help_folder / "en-US"
    pairs: dict[parallel_text.Pair, None] = {}
    for page in sorted(german.rglob("*.html")):
        other = english / page.relative_to(german)
        translations = paragraphs(other) if other.is_file() else {}
        for key, text in paragraphs(page).items():
            if key in translations:
                sides = SENTENCE_END.split(text), SENTENCE_END.split(translations[key])
                if len(sides[0]) != len(sides[1]):
                    sides = [text], [translations[key]]
                pairs.update(dict.fromkeys(pair for pair in zip(*sides, strict=True) if pair[0] != pair[1]))
    if not pairs:
        raise parallel_text.CorpusError(f"{help_folder}: no paragraph with the same par_ id below de and en-US")
    return list(pairs)


def call(*command: str, cwd: Path | None = None) -> str:
    """Run a program; return what went wrong, empty when nothing did."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not answer in five minutes"
    errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")] or done.stderr.splitlines()
    return "" if done.returncode == 0 else (errors or [f"{command[0]} failed"])[-1].removeprefix("E: ")


def download(folder: Path, packages: Sequence[str] = PACKAGES, advice: str = ADVICE) -> list[Path]:
    """The packages as .deb files in `folder`, downloaded where they are not there yet; `advice`: what to do without them."""
    for package in packages:
        if any(folder.glob(f"{package}_*.deb")):
            continue
        parallel_text.say(f"downloading {package} with apt-get ...")
        command = ("apt-get", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "download", package)
        wrong = call(*command, cwd=folder)
        if wrong and os.geteuid() == 0:  # a fresh container has no package lists, and its user may fetch them
            parallel_text.say(f"that failed ({wrong}); running apt-get update ...")
            wrong = call("apt-get", "update") or call(*command, cwd=folder)
        if wrong:
            raise parallel_text.CorpusError(f"cannot download {package} ({wrong}); {advice}", NOT_REACHED)
    return [max(folder.glob(f"{package}_*.deb")) for package in packages]


def unpack(sources: list[Path], folder: Path) -> Path:
    """Unpack .deb files into `folder`, or take an unpacked folder as it is; the folder that holds `usr`."""
    if len(sources) == 1 and sources[0].is_dir():
        return sources[0]
    for source in sources:
        if not source.is_file():
            raise parallel_text.CorpusError(f"{source}: no such file; --from takes the two .deb files or one folder")
        if wrong := call("dpkg-deb", "-x", str(source), str(folder)):
            raise parallel_text.CorpusError(f"cannot unpack {source}: {wrong}")
    return folder


def version(root: Path, package: str) -> str:
    """Version of an unpacked package, from its changelog."""
    try:
        with gzip.open(root / "usr/share/doc" / package / "changelog.Debian.gz", "rt", encoding="utf-8") as changelog:
            return changelog.readline().split("(")[1].split(")")[0]
    except (OSError, EOFError, IndexError):
        return "of unknown version"


def take(root: Path) -> tuple[list[parallel_text.Pair], str]:
    """The extracted pairs and their origin, from a folder that holds `usr/share/libreoffice/help` or is that folder."""
    help_folder = root / HELP if (root / HELP).is_dir() else root
    for lang in ("de", "en-US"):
        if not (help_folder / lang).is_dir():
            raise parallel_text.CorpusError(f"{help_folder} has no folder {lang}: are both help packages unpacked there?")
    return extract(help_folder), "Debian packages " + ", ".join(f"{name} {version(root, name)}" for name in PACKAGES)


def make(args: argparse.Namespace) -> parallel_text.Corpus:
    """Download, unpack, extract, tokenize, clean, take a part where asked for, and hold out."""
    with tempfile.TemporaryDirectory(prefix="corpus-") as scratch, archives.cache_folder(args.cache) as cache:
        raw, origin = take(unpack(getattr(args, "from") or download(cache), Path(scratch)))
    counted = sum(len(german.split()) >= 4 for german, _ in raw)
    parallel_text.say(f"extracted {len(raw):,} unique pairs, {counted:,} with 4 German words or more; tokenizing ...")

    dropped: Counter[str] = Counter()
    unprocessed = [pair for pair in raw if not any(map(parallel_text.ALREADY_PROCESSED.search, pair))]
    if len(unprocessed) < len(raw):
        dropped["text shows &apos; or @@ itself"] = len(raw) - len(unprocessed)
    tokenized = parallel_text.tokenize(unprocessed, "de", "en", args.lowercase)
    unique = list(dict.fromkeys(tokenized))
    dropped["same pair again but for case and spaces"] = len(tokenized) - len(unique)
    cleaned = parallel_text.clean(unique, dropped, args.max_words, args.max_ratio, args.min_words)

    note = f"{len(raw):,} unique pairs in the packages, {len(cleaned):,} after cleaning"
    if args.pairs is not None:
        if not 1 <= args.pairs <= len(cleaned):
            raise parallel_text.CorpusError(f"--pairs {args.pairs:,}: there are {len(cleaned):,} pairs after cleaning")
        cleaned = parallel_text.in_hash_order(cleaned)[: args.pairs]
        note += f", {args.pairs:,} of them taken by hash"
    heldout = min(1000, len(cleaned) // 10) if args.heldout is None else args.heldout
    return parallel_text.Corpus(
        name="libreoffice-help",
        source_lang="de",
        target_lang="en",
        origin=origin,
        licence="MPL-2.0",
        tokenizer=parallel_text.tokenizer_name(),
        lowercase=args.lowercase,
        splits=parallel_text.hold_out(cleaned, heldout, dropped),
        merges=args.merges,
        note=note + "; software documentation, not IWSLT14: scores of the two cannot be compared",
        dropped=dropped,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--from", type=Path, nargs="+", metavar="PATH", help="the two .deb files, or a folder with them unpacked")
    add("--cache", type=Path, metavar="DIR", help="folder to keep the downloaded packages in (default: not kept)")
    add("--pairs", type=int, metavar="N", help="take N pairs of train, valid and test together (default: all)")
    add("--min-words", type=int, default=4, metavar="N", help="shortest side kept, in tokens (default 4)")
    add("--max-words", type=int, default=60, metavar="N", help="longest side kept, in tokens (default 60)")
    add("--max-ratio", type=float, default=2.0, metavar="R", help="longer side / shorter side (default 2)")
    add("--heldout", type=int, metavar="N", help="pairs of valid, and of test (default: a tenth, at most 1000)")
    add("--merges", type=int, default=4000, metavar="N", help="joint BPE merges (default 4000)")
    add("--lowercase", action=argparse.BooleanOptionalAction, default=True, help="lower-case both sides (the default)")
    return result


if __name__ == "__main__":
    parallel_text.run(make, parser())
