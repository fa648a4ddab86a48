"""Tests of recipes/corpora: the scripts that make the data of the paper's appendix A.1 and its stand-ins.

Every script is run as a user runs it, on a few lines made here. Oracles: the lines that went in, the invariants of a
parallel text, and BPE that must join to the very text it came from.
"""

import fcntl
import functools
import hashlib
import html
import http.server
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time

import pytest
from conftest import ROOT
from corpus_scripts import refused

CORPORA = ROOT / "recipes" / "corpora"
OWN = ("--src", "de", "--tgt", "en", "--merges", "30")


def call(script, *arguments, cwd=None, **environment):
    """Run a script of recipes/corpora; the finished process with its text."""
    command = [sys.executable, CORPORA / script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | environment, timeout=100)


def made(out, done):
    """The facts of the corpus that a call left, once it is checked that all went well."""
    assert done.returncode == 0, done.stderr
    return json.loads((out / "corpus.json").read_text(encoding="utf-8"))


def lines(path):
    """Lines of a file, split at LF only."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def numbers(start, count):
    """Aligned lower-case sentences of four to seven words, different for every number."""
    pick = random.Random(start)
    names = "hund katze haus baum fluss berg insel vogel".split(), "dog cat house tree river hill island bird".split()
    pairs = []
    for number in range(start, start + count):
        words = pick.choices(range(8), k=pick.randint(3, 6))
        pairs.append(tuple(" ".join([side[word] for word in words] + [str(number)]) for side in names))
    return pairs


def write_pairs(prefix, pairs, end="\n"):
    """Write pairs to PREFIX.de and PREFIX.en."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for side, lang in enumerate(("de", "en")):
        text = "".join(pair[side] + end for pair in pairs)
        prefix.with_name(f"{prefix.name}.{lang}").write_bytes(text.encode())


@pytest.fixture
def raw(tmp_path):
    """A folder with 40, 10 and 10 raw pairs in {train,valid,test}.{de,en}."""
    folder = tmp_path / "raw"
    for split, start, count in ("train", 0, 40), ("valid", 100, 10), ("test", 200, 10):
        write_pairs(folder / split, numbers(start, count))
    return folder


def own(raw, out, *more, **environment):
    """Run own.py on the three splits of a folder."""
    splits = [part for split in ("train", "valid", "test") for part in (f"--{split}", raw / split)]
    return call("own.py", "--out", out, *OWN, *splits, *more, **environment)


# ------------------------------------------------------------------------------------------------ the shared rules


def test_a_corpus_folder_holds_what_the_recipes_read(raw, tmp_path):
    """All files of the contract, and corpus.json counts their lines."""
    facts = made(tmp_path / "out", own(raw, tmp_path / "out"))
    assert facts["pairs"] == {"train": 40, "valid": 10, "test": 10}
    splits = ("train", "valid", "test", "valid500")
    expected = {f"{where}{split}.{lang}" for where in ("", "bpe/") for split in splits for lang in ("de", "en")} | {"code"}
    assert set(facts["sha256"]) == expected
    assert facts["bpe_merges"] == len(lines(tmp_path / "out" / "code")) - 1
    assert "sacremoses" in facts["tokenizer"] and facts["source_lang"] == "de" and facts["target_lang"] == "en"


def test_valid500_is_the_first_500_lines_of_valid(raw, tmp_path):
    """Of 520 valid pairs, 500."""
    write_pairs(raw / "valid", numbers(1000, 520))
    made(tmp_path / "out", own(raw, tmp_path / "out"))
    for lang in ("de", "en"):
        assert lines(tmp_path / "out" / f"valid500.{lang}") == lines(tmp_path / "out" / f"valid.{lang}")[:500]
        assert len(lines(tmp_path / "out" / "bpe" / f"valid500.{lang}")) == 500


def test_bpe_joins_restore_the_text_exactly(raw, tmp_path):
    """Dropping `@@ ` from bpe/X gives X, for every split, and something was split at all."""
    write_pairs(raw / "test", [("Das »Ärgernis« geht's an: 50 %!", "It's the & of <it>, e.g. #5."), *numbers(200, 9)])
    made(tmp_path / "out", own(raw, tmp_path / "out"))
    for split in ("train", "valid", "test"):
        for lang in ("de", "en"):
            segmented = (tmp_path / "out" / "bpe" / f"{split}.{lang}").read_text(encoding="utf-8")
            assert "@@ " in segmented
            assert segmented.replace("@@ ", "") == (tmp_path / "out" / f"{split}.{lang}").read_text(encoding="utf-8")


def test_text_is_tokenized_with_the_rules_of_moses(raw, tmp_path):
    """Punctuation apart, `'s` as `&apos;s`, case kept without --lowercase."""
    write_pairs(raw / "test", [("Ja, gut.", "It's good."), *numbers(200, 9)])
    made(tmp_path / "out", own(raw, tmp_path / "out"))
    assert lines(tmp_path / "out" / "test.de")[0] == "Ja , gut ."
    assert lines(tmp_path / "out" / "test.en")[0] == "It &apos;s good ."


def test_lowercase_reaches_every_split_and_both_sides(raw, tmp_path):
    """No capital is left, and corpus.json says so."""
    for split in ("train", "valid", "test"):
        write_pairs(raw / split, [(german.upper(), english.upper()) for german, english in numbers(5, 20)])
    assert made(tmp_path / "out", own(raw, tmp_path / "out", "--lowercase"))["lowercase"] is True
    for path in (tmp_path / "out").glob("*.??"):
        assert path.read_text(encoding="utf-8") == path.read_text(encoding="utf-8").lower()


def test_unequal_line_counts_are_refused_with_both_counts(raw, tmp_path):
    """40 and 39 lines."""
    (raw / "train.en").write_text("a b\n" * 39, encoding="utf-8")
    refused(own(raw, tmp_path / "out"), "train.de has 40", "train.en has 39")
    assert not (tmp_path / "out").exists()


def test_an_empty_file_is_refused(raw, tmp_path):
    """An empty file is what a failed program left."""
    for lang in ("de", "en"):
        (raw / f"valid.{lang}").write_text("", encoding="utf-8")
    refused(own(raw, tmp_path / "out"), "valid.de is empty")


def test_a_missing_file_is_refused_by_name(raw, tmp_path):
    """No test.en."""
    (raw / "test.en").unlink()
    refused(own(raw, tmp_path / "out"), "test.en", "no such file")


def test_bad_utf_8_is_refused_with_file_and_line(raw, tmp_path):
    """Latin-1 in line 3."""
    text = (raw / "train.de").read_bytes().split(b"\n")
    text[2] = "grüß".encode("latin-1")
    (raw / "train.de").write_bytes(b"\n".join(text))
    refused(own(raw, tmp_path / "out"), "train.de, line 3", "UTF-8")


def test_crlf_and_a_byte_order_mark_leave_no_trace(raw, tmp_path):
    """The corpus of CRLF files equals that of LF files."""
    made(tmp_path / "lf", own(raw, tmp_path / "lf"))
    for path in raw.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    made(tmp_path / "crlf", own(raw, tmp_path / "crlf"))
    for path in (tmp_path / "lf").rglob("*.??"):
        assert path.read_bytes() == (tmp_path / "crlf" / path.relative_to(tmp_path / "lf")).read_bytes()


def test_other_line_separators_of_unicode_do_not_shift_the_lines(raw, tmp_path):
    """U+2028 and a no-break space inside a line become a space; the sides stay aligned."""
    write_pairs(raw / "test", [("ein\u2028alter\u00a0hund .", "an old dog ."), *numbers(200, 9)])
    assert made(tmp_path / "out", own(raw, tmp_path / "out"))["pairs"]["test"] == 10
    assert lines(tmp_path / "out" / "test.de")[0] == "ein alter hund ."


def test_an_ascii_locale_changes_nothing(raw, tmp_path):
    """Umlauts survive LC_ALL=C."""
    write_pairs(raw / "test", [("grüß dich", "hello you"), *numbers(200, 9)])
    made(tmp_path / "out", own(raw, tmp_path / "out", LC_ALL="C", PYTHONIOENCODING=""))
    assert lines(tmp_path / "out" / "test.de")[0] == "grüß dich"


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_blank_line_leaves_both_sides_and_is_counted(raw, tmp_path, split):
    """Line 5 of one side is blank: the pair goes, all others stay aligned."""
    pairs = numbers(300, 20)
    write_pairs(raw / split, [*pairs[:4], (pairs[4][0], "  "), *pairs[5:]])
    facts = made(tmp_path / "out", own(raw, tmp_path / "out"))
    assert facts["dropped"] == {"a side is blank": 1}
    kept = pairs[:4] + pairs[5:]
    assert list(zip(lines(tmp_path / "out" / f"{split}.de"), lines(tmp_path / "out" / f"{split}.en"), strict=True)) == kept


def test_long_and_lopsided_pairs_leave_and_are_counted_by_reason(raw, tmp_path):
    """176 words, and 2 words to 4; 175 words and 2 to 3 are at the limit and stay."""
    odd = [("a " * 176, "b " * 176), ("a b", "a b c d"), ("a " * 175, "b " * 175), ("a b", "a b c")]
    write_pairs(raw / "train", numbers(0, 40) + odd)
    facts = made(tmp_path / "out", own(raw, tmp_path / "out"))
    assert facts["pairs"]["train"] == 42
    reasons = "a side has more than 175 words", "one side is more than 1.5 times as long as the other"
    assert facts["dropped"] == dict.fromkeys(reasons, 1)


def test_test_lines_are_never_dropped(raw, tmp_path):
    """Blank, over-long and lopsided test lines stay where they are."""
    pairs = [("hund eins", "dog one"), ("", "a blank source"), ("ein leeres ziel", ""), ("a " * 300, "b"), ("katze", "cat")]
    write_pairs(raw / "test", pairs)
    facts = made(tmp_path / "out", own(raw, tmp_path / "out"))
    assert facts["pairs"]["test"] == 5 and facts["dropped"] == {}
    assert lines(tmp_path / "out" / "test.en") == [english for _, english in pairs]
    assert len(lines(tmp_path / "out" / "bpe" / "test.de")) == 5


def test_a_line_of_too_many_subwords_leaves_train_before_it_can_stop_a_training(raw, tmp_path):
    """One word of 1,200 letters is one word but over 1,000 subwords; test keeps it, with a warning."""
    letters = "".join(random.Random(1).choices("bcdfghjklmnpqrstvwxz", k=1200))
    write_pairs(raw / "train", [*numbers(0, 40), (letters, letters)])
    write_pairs(raw / "test", [*numbers(200, 9), (letters, letters)])
    done = own(raw, tmp_path / "out")
    facts = made(tmp_path / "out", done)
    assert facts["pairs"] == {"train": 40, "valid": 10, "test": 10}
    assert "1 pairs of test have more than 1000 subwords" in done.stderr
    assert facts["dropped"] == {"a side has more than 1000 subwords": 1}


@pytest.mark.parametrize("trace", ["it &apos;s here", "hou@@ se here"])
def test_text_that_was_processed_before_is_refused_with_file_and_line(raw, tmp_path, trace):
    """`&apos;` and `@@ ` in line 7 of train.en."""
    pairs = numbers(0, 40)
    pairs[6] = (pairs[6][0], trace)
    write_pairs(raw / "train", pairs)
    refused(own(raw, tmp_path / "out"), "train.en, line 7", "already tokenized")


def test_text_full_of_marks_inside_words_is_refused_by_its_files(raw, tmp_path):
    """`a@@b`: no trace of BPE, and yet no text that BPE could be undone in."""
    write_pairs(raw / "valid", [(german, f"{english} a@@b") for german, english in numbers(100, 20)])
    refused(own(raw, tmp_path / "out"), "valid.en: 20 of 20 pairs hold @@")


def test_one_language_twice_is_refused(raw, tmp_path):
    """--src and --tgt must differ."""
    refused(own(raw, tmp_path / "out", "--tgt", "de"), "--src and --tgt are both de")


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (("--merges", "0"), 1, "--merges 0 is not a number of BPE merges; give 1 or more"),
        (("--max-words", "0"), 1, "--max-words 0 would leave no pair; give 1 or more"),
        (("--max-ratio", "0.9"), 1, "--max-ratio 0.9 would leave no pair; give 1 or more"),
        (("--max-ratio", "nan"), 1, "--max-ratio nan would leave no pair; give 1 or more"),
        (("--src", "d e"), 2, "argument --src: 'd e' is not a language code such as de or pt_BR"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(raw, tmp_path, flags, status, sentence):
    """In one sentence, and nothing is written."""
    refused(own(raw, tmp_path / "out", *flags), sentence, status=status)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--max-words", "9"), "a side has more than 9 words"),
        (("--max-ratio", "2.5"), "one side is more than 2.5 times as long as the other"),
    ],
)
def test_the_limits_of_a_pair_can_be_set(raw, tmp_path, flags, reason):
    """10 words to 10, and 2 to 6, leave by one limit and stay by the other's default; 9 and 2 to 5 stay."""
    odd = {
        "--max-words": [("a " * 10, "b " * 10), ("a " * 9, "b " * 9)],
        "--max-ratio": [("a b", "a b c d e f"), ("a b", "a b c d e")],
    }
    write_pairs(raw / "train", numbers(0, 40) + odd[flags[0]])
    facts = made(tmp_path / "out", own(raw, tmp_path / "out", *flags))
    assert facts["pairs"]["train"] == 41 and facts["dropped"] == {reason: 1}


def test_a_rare_trace_of_processing_leaves_train_and_is_counted(raw, tmp_path):
    """`@@` as in a motto of one raw line of 200 is no BPE; the pair goes, or its BPE could not be undone."""
    pairs = numbers(0, 200)
    write_pairs(raw / "train", [*pairs[:-1], (pairs[-1][0], "a sign says @@ home @@")])
    facts = made(tmp_path / "out", own(raw, tmp_path / "out"))
    assert facts["dropped"] == {"a side holds &apos; or @@": 1} and facts["pairs"]["train"] == 199


def test_ones_own_text_with_the_languages_swapped_is_refused(raw, tmp_path):
    """English in train.de."""
    write_pairs(raw / "train", [(f"the {english}", german) for german, english in numbers(0, 40)])
    refused(own(raw, tmp_path / "out"), "the .de files hold more English than the .en files", "other way round")


def test_other_languages_give_files_of_their_own_suffix(raw, tmp_path):
    """fr-pt_BR in, fr-pt_BR out."""
    for path in list(raw.iterdir()):
        path.rename(path.with_suffix(".fr" if path.suffix == ".de" else ".pt_BR"))
    made(tmp_path / "out", own(raw, tmp_path / "out", "--src", "fr", "--tgt", "pt_BR"))
    assert (tmp_path / "out" / "bpe" / "train.pt_BR").is_file()


# --------------------------------------------------------------------------------------- second, other and killed runs


def test_a_second_run_does_nothing_and_says_so(raw, tmp_path):
    """No file is touched."""
    out = tmp_path / "out"
    made(out, own(raw, out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = own(raw, out)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_other_arguments_are_refused_and_the_folder_to_delete_is_named(raw, tmp_path):
    """30 merges, then 20."""
    out = tmp_path / "out"
    made(out, own(raw, out))
    refused(own(raw, out, "--merges", "20"), "--merges 30, not 20", f"delete {out}")


def test_the_same_text_in_another_place_is_the_same_corpus(raw, tmp_path):
    """A clone or its data was moved."""
    out = tmp_path / "out"
    made(out, own(raw, out))
    assert "nothing to do" in own(raw.rename(tmp_path / "moved"), out).stderr


def test_another_text_in_the_same_place_is_refused(raw, tmp_path):
    """One line of train.en is another."""
    out = tmp_path / "out"
    made(out, own(raw, out))
    (raw / "train.en").write_text("cat " + (raw / "train.en").read_text(encoding="utf-8"), encoding="utf-8")
    refused(own(raw, out), "was made with content of --train", f"delete {out}")


def test_a_finished_corpus_needs_its_text_no_more(raw, tmp_path):
    """The raw files are deleted."""
    out = tmp_path / "out"
    made(out, own(raw, out))
    for path in raw.iterdir():
        path.unlink()
    assert "nothing to do" in own(raw, out).stderr


def test_an_archive_in_another_place_is_the_same_corpus(prepared, tmp_path):
    """And an archive of other content at its old place is not."""
    archive, out = pack(tmp_path / "data.tar.gz", prepared, "iwslt14-de-en"), tmp_path / "out"
    made(out, iwslt14(out, archive))
    moved = archive.rename(tmp_path / "moved.tar.gz")
    assert "nothing to do" in iwslt14(out, moved).stderr
    (prepared / "code").unlink()
    refused(iwslt14(out, pack(archive, prepared, "iwslt14-de-en")), "was made with content of --from")


def test_two_starts_do_not_make_the_same_corpus_at_once(raw, tmp_path):
    """The folder that the first one writes is locked: the second stops, and deletes nothing."""
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "train.de").write_text("half")
    lock = os.open(partial, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused(own(raw, tmp_path / "out"), "is being made by another process")
    os.close(lock)
    assert (partial / "train.de").read_text() == "half"


def test_a_prefix_without_a_name_is_refused_in_one_sentence(raw, tmp_path):
    """--train ., a folder."""
    refused(own(raw, tmp_path / "out", "--train", "."), "..de: no such file")


def test_a_changed_file_of_a_finished_folder_is_noticed(raw, tmp_path):
    """One line more in bpe/train.de."""
    out = tmp_path / "out"
    made(out, own(raw, out))
    with (out / "bpe" / "train.de").open("a", encoding="utf-8") as file:
        file.write("hund\n")
    refused(own(raw, out), "bpe/train.de", "was changed", f"delete {out}")


def test_a_folder_of_something_else_is_not_written_over(raw, tmp_path):
    """--out holds a file that is not ours."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    refused(own(raw, tmp_path / "out"), "is not a corpus folder")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_killed_run_leaves_no_corpus_and_the_next_one_starts_clean(raw, tmp_path):
    """Killed with -9 as soon as the run has begun: DIR is not there, and a second run makes it without the leftovers."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    command = [sys.executable, CORPORA / "grammar.py", "--out", out, "--pairs", "20000"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not partial.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert partial.exists() and not out.exists()
    (partial / "leftover").write_text("of the killed run", encoding="utf-8")
    made(out, own(raw, out))
    assert not partial.exists() and not (out / "leftover").exists()


def test_a_full_disk_ends_in_a_sentence_and_leaves_nothing(raw, tmp_path):
    """With files limited to 1 kB, writing fails in the middle."""
    out = tmp_path / "out"
    splits = [part for split in ("train", "valid", "test") for part in (f"--{split}", raw / split)]
    command = [sys.executable, CORPORA / "own.py", "--out", out, *OWN, *splits]
    limited = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *map(str, command)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=100)
    refused(done, "File too large")
    assert not out.exists() and not (tmp_path / "out.partial").exists()


def test_the_checksums_are_those_of_the_files(raw, tmp_path):
    """sha256 of every file in corpus.json, computed independently."""
    facts = made(tmp_path / "out", own(raw, tmp_path / "out"))
    for name, expected in facts["sha256"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == expected


# ------------------------------------------------------------------------------------------------------------ grammar


@pytest.fixture(scope="module")
def grammar(tmp_path_factory):
    """The corpus of 1,200 pairs of the built-in grammar."""
    out = tmp_path_factory.mktemp("grammar") / "out"
    made(out, call("grammar.py", "--out", out, "--pairs", "1200", "--merges", "100"))
    return out


def test_the_same_seed_gives_the_same_grammar_corpus(grammar, tmp_path):
    """Byte for byte, also under another hash seed."""
    again = tmp_path / "again"
    arguments = ("grammar.py", "--out", again, "--pairs", "1200", "--merges", "100")
    facts = made(again, call(*arguments, PYTHONHASHSEED="7"))
    assert facts["sha256"] == json.loads((grammar / "corpus.json").read_text(encoding="utf-8"))["sha256"]


def test_another_seed_gives_another_grammar_corpus(grammar, tmp_path):
    """Seed 2."""
    facts = made(tmp_path / "out", call("grammar.py", "--out", tmp_path / "out", "--pairs", "1200", "--seed", "2"))
    assert lines(tmp_path / "out" / "train.en") != lines(grammar / "train.en")
    assert "synthetic" in facts["note"]


def test_grammar_pairs_are_unique_and_as_many_as_asked_for(grammar):
    """1,200 pairs less the few dropped by source sentence."""
    pairs = [
        pair
        for split in ("train", "valid", "test")
        for pair in zip(lines(grammar / f"{split}.de"), lines(grammar / f"{split}.en"), strict=True)
    ]
    dropped = json.loads((grammar / "corpus.json").read_text(encoding="utf-8"))["dropped"]
    assert len(set(pairs)) == len(pairs) == 1200 - sum(dropped.values())


def test_no_sentence_of_either_side_is_in_two_splits(grammar):
    """Held out by English sentence, and no German sentence is shared either."""
    for lang in ("de", "en"):
        train, valid, test = (set(lines(grammar / f"{split}.{lang}")) for split in ("train", "valid", "test"))
        assert not train & valid and not train & test and not valid & test


def test_the_grammar_puts_the_german_verb_last_in_a_subordinate_clause(grammar):
    """After `dass er` and `dass wir` and the like, the clause ends in a verb, in agreement with its subject."""
    clauses = [line.split(" , dass wir ")[1] for line in lines(grammar / "train.de") if " , dass wir " in line]
    last = [clause.rsplit(" , ", 1)[-1].removesuffix(" .").split()[-1] for clause in clauses]
    assert last and all(word.endswith("n") for word in last)


# --------------------------------------------------------------------------------------------------- LibreOffice help

PAGES = {
    "a.html": (
        """<p id="par_1">Der Hund schläft. Die Katze ist wach.</p><p id="par_2">Drücken Sie
        <span class="switchinline"><span hidden="true" class="MAC"><span class="keycode">Befehl</span></span><span>Strg</span>
        </span>+F jetzt &amp; hier.</p><p class="x">Ohne Kennung.</p><p id="hd_3">Andere Kennung.</p>""",
        """<p id="par_2">Press <span class="switchinline"><span hidden="true" class="MAC"><span class="keycode">Command</span>
        </span><span>Ctrl</span></span>+F now &amp; here.</p><p id="par_1">The dog sleeps. The cat is awake.</p>
        <p class="x">Without id.</p><p id="hd_3">Another id.</p>""",
    ),
    "sub/b.html": (
        """<h2 id="par_1">Eine lange Überschrift<br>mit Umbruch</h2><p id="par_4">Erst dies. Dann das. Ende gut.</p>
        <p id="par_5">Nur auf Deutsch.</p><p id="par_6">LibreOffice</p>""",
        """<h2 id="par_1">A long heading<br>with a break</h2><p id="par_4">First this, then that. All is well.</p>
        <p id="par_6">LibreOffice</p>""",
    ),
    "c.html": ("<p id='par_1'>Nur deutsche Seite.</p>", None),
}
EXPECTED = {
    ("Der Hund schläft.", "The dog sleeps."),
    ("Die Katze ist wach.", "The cat is awake."),
    ("Drücken Sie Strg +F jetzt & hier.", "Press Ctrl+F now & here."),
    ("Eine lange Überschrift mit Umbruch", "A long heading with a break"),
    ("Erst dies. Dann das. Ende gut.", "First this, then that. All is well."),
}


def help_tree(root, more=()):
    """An unpacked pair of help packages with the pages above and `more` paragraphs."""
    pages = dict(PAGES)
    pages["more.html"] = tuple(
        "".join(f'<p id="par_{number}">{pair[side]}</p>' for number, pair in enumerate(more)) for side in (0, 1)
    )
    for name, sides in pages.items():
        for lang, page in zip(("de", "en-US"), sides, strict=True):
            if page is not None:
                path = root / "usr/share/libreoffice/help" / lang / "text" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"<html><body>{page}</body></html>", encoding="utf-8")
    return root


def test_help_paragraphs_align_by_id_without_the_mac_variant(tmp_path):
    """By id and not by place; sentences only where both sides give as many; untranslated and one-sided text left out."""
    help_tree(tmp_path)
    script = "import sys, json, pathlib, libreoffice_help as h; print(json.dumps(h.extract(pathlib.Path(sys.argv[1]))))"
    command = [sys.executable, "-c", script, tmp_path / "usr/share/libreoffice/help"]
    printed = subprocess.run(command, cwd=CORPORA, capture_output=True, text=True, check=True).stdout
    assert {tuple(pair) for pair in json.loads(printed)} == EXPECTED


def test_the_help_corpus_is_split_by_english_sentence(tmp_path):
    """60 pairs, each English sentence with two German ones: both translations land in one split."""
    pairs = [(f"{german} {ending}", english) for german, english in numbers(0, 60) for ending in ("eins", "zwei")]
    out = tmp_path / "out"
    facts = made(out, call("libreoffice_help.py", "--out", out, "--from", help_tree(tmp_path, pairs), "--merges", "50"))
    train, valid, test = (set(lines(out / f"{split}.en")) for split in ("train", "valid", "test"))
    assert not train & valid and not train & test and not valid & test
    assert facts["also_in_train"] == {"valid": 0, "test": 0}
    assert facts["licence"] == "MPL-2.0" and "libreoffice-help-de" in facts["origin"]


def test_a_german_sentence_with_two_translations_stays_in_one_split(tmp_path):
    """60 German sentences with two English ones each: what would be in two splits is dropped and counted."""
    pairs = [(german, f"{english} {ending}") for german, english in numbers(0, 60) for ending in ("one", "two")]
    out = tmp_path / "out"
    facts = made(out, call("libreoffice_help.py", "--out", out, "--from", help_tree(tmp_path, pairs), "--merges", "50"))
    train, valid, test = (set(lines(out / f"{split}.de")) for split in ("train", "valid", "test"))
    assert not train & valid and not train & test and not valid & test
    assert facts["dropped"]["source sentence is in another split"] > 0


def test_a_part_of_the_help_corpus_is_the_same_part_each_time(tmp_path):
    """--pairs 40 of 60, twice, and the note tells it."""
    root = help_tree(tmp_path, numbers(0, 60))
    facts = []
    for name in ("one", "two"):
        arguments = ("--out", tmp_path / name, "--from", root, "--pairs", "40", "--merges", "50")
        facts.append(made(tmp_path / name, call("libreoffice_help.py", *arguments)))
    assert sum(facts[0]["pairs"].values()) == 40 and "40 of them" in facts[0]["note"]
    assert facts[0]["sha256"] == facts[1]["sha256"]


def test_max_words_and_min_words_limit_the_help_corpus(tmp_path):
    """All sides have 4 to 6 tokens."""
    root = help_tree(tmp_path, numbers(0, 90))
    arguments = ("--from", root, "--min-words", "4", "--max-words", "6", "--merges", "50")
    made(tmp_path / "out", call("libreoffice_help.py", "--out", tmp_path / "out", *arguments))
    lengths = {len(line.split()) for path in (tmp_path / "out").glob("*.??") for line in lines(path)}
    assert lengths == {4, 5, 6}


@pytest.mark.parametrize("program", ["exit 100", ""])
def test_an_unreached_registry_ends_with_status_3(tmp_path, program):
    """With an apt-get that fails, or none at all, the quickstart can fall back on the grammar."""
    programs = tmp_path / "bin"
    programs.mkdir()
    if program:
        (programs / "apt-get").write_text(f"#!/bin/sh\necho 'E: no network' >&2\n{program}\n", encoding="utf-8")
        (programs / "apt-get").chmod(0o755)
    path = f"{programs}:/usr/bin:/bin" if program else str(programs)
    done = call("libreoffice_help.py", "--out", tmp_path / "out", PATH=path)
    refused(done, "cannot download libreoffice-help-de", "grammar.py", status=3)
    assert not (tmp_path / "out").exists()


def test_a_corpus_of_downloaded_packages_is_not_one_of_files_that_are_given(tmp_path):
    """The folder tells that none were given, as it does when apt-get brought them."""
    root, out = help_tree(tmp_path, numbers(0, 60)), tmp_path / "out"
    made(out, call("libreoffice_help.py", "--out", out, "--from", root, "--merges", "50"))
    facts = json.loads((out / "corpus.json").read_text())
    facts["arguments"].pop("content of --from")
    (out / "corpus.json").write_text(json.dumps({**facts, "arguments": {**facts["arguments"], "--from": None}}))
    done = call("libreoffice_help.py", "--out", out, "--from", root, "--merges", "50")
    refused(done, "was made without --from", f"delete {out}")


@pytest.mark.skipif(os.geteuid() != 0, reason="package lists are root's")
@pytest.mark.parametrize(("fails", "calls"), [("no", ["download"] * 2), ("yes", ["download", "update"])])
def test_package_lists_are_updated_only_after_a_download_that_failed(tmp_path, fails, calls):
    """And it is said; here they cannot be had either, or what came is no package."""
    (tmp_path / "apt-get").write_text(
        f'#!/bin/sh\nfor word; do :; done\ncase "$*" in *download*) echo download >>{tmp_path}/calls; touch "$word"_1.deb ;;\n'
        f"*) echo update >>{tmp_path}/calls ;; esac\n[ {fails} = no ]\n"
    )
    (tmp_path / "apt-get").chmod(0o755)
    done = call("libreoffice_help.py", "--out", tmp_path / "out", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert (tmp_path / "calls").read_text().split() == calls
    assert ("running apt-get update" in done.stderr) is (fails == "yes")


def test_a_help_folder_without_english_is_refused(tmp_path):
    """Only the German package is unpacked."""
    (tmp_path / "usr/share/libreoffice/help/de").mkdir(parents=True)
    done = call("libreoffice_help.py", "--out", tmp_path / "out", "--from", tmp_path)
    refused(done, "has no folder en-US")


# ------------------------------------------------------------------------------------------------------------ IWSLT14


@pytest.fixture
def prepared(tmp_path):
    """Layout 1: tokenized lower-case text, its own BPE codes and dictionaries, 40 / 10 / 10 pairs."""
    folder = tmp_path / "iwslt14-de-en"
    for split, start, count in ("train", 0, 40), ("valid", 100, 10), ("test", 200, 10):
        write_pairs(folder / split, [(f"{german} der &apos;", f"the {english}") for german, english in numbers(start, count)])
    merges = ["d e", "de r</w>", "t h", "th e</w>", "h u", "d o"]
    (folder / "code").write_text("#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges), encoding="utf-8")
    first = tmp_path / "first"
    made(first, iwslt14(first, folder))
    for lang in ("de", "en"):
        words = sorted(set((first / "bpe" / f"train.{lang}").read_text(encoding="utf-8").split()))
        (folder / f"dict.{lang}.txt").write_text("".join(f"{word} 1\n" for word in words), encoding="utf-8")
    return folder


def iwslt14(out, source, *more, expect="40/10/10"):
    """Run iwslt14.py on a stand-in of 40 / 10 / 10 pairs."""
    return call("iwslt14.py", "--out", out, "--from", source, "--expect-pairs", expect, *more)


def pack(archive, folder, name):
    """A tar.gz of a folder."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=name)
    return archive


def test_prepared_text_keeps_its_bytes_codes_and_dictionaries(prepared, tmp_path):
    """Layout 1 as a folder: text, code and dictionaries go through unchanged."""
    out = tmp_path / "out"
    facts = made(out, iwslt14(out, prepared))
    for name in ("train.de", "valid.en", "test.de", "test.en", "code"):
        assert (out / name).read_bytes() == (prepared / name).read_bytes()
    for lang in ("de", "en"):
        assert (out / "bpe" / f"dict.{lang}.txt").read_bytes() == (prepared / f"dict.{lang}.txt").read_bytes()
    assert facts["bpe_merges"] == 6 and "official dictionaries" in facts["note"]


def test_an_archive_gives_the_same_corpus_as_its_folder(prepared, tmp_path):
    """Layout 1 as a .tar.gz."""
    folder = made(tmp_path / "a", iwslt14(tmp_path / "a", prepared))
    archive = pack(tmp_path / "data.tar.gz", prepared, "iwslt14-de-en")
    assert made(tmp_path / "b", iwslt14(tmp_path / "b", archive))["sha256"] == folder["sha256"]


def test_the_output_of_fairseqs_script_gives_the_same_corpus(prepared, tmp_path):
    """Layout 2: text in tmp/, BPE'd text above it; and the same with tmp/ deleted, where joins are undone."""
    plain = made(tmp_path / "plain", iwslt14(tmp_path / "plain", prepared))
    fairseq = tmp_path / "iwslt14.tokenized.de-en"
    (fairseq / "tmp").mkdir(parents=True)
    for name in ("code", "dict.de.txt", "dict.en.txt"):
        (fairseq / name).write_bytes((prepared / name).read_bytes())
    for split in ("train", "valid", "test"):
        for lang in ("de", "en"):
            (fairseq / "tmp" / f"{split}.{lang}").write_bytes((prepared / f"{split}.{lang}").read_bytes())
            (fairseq / f"{split}.{lang}").write_bytes((tmp_path / "plain" / "bpe" / f"{split}.{lang}").read_bytes())
    assert made(tmp_path / "a", iwslt14(tmp_path / "a", fairseq))["sha256"] == plain["sha256"]
    for path in (fairseq / "tmp").iterdir():
        path.unlink()
    (fairseq / "tmp").rmdir()
    facts = made(tmp_path / "b", iwslt14(tmp_path / "b", fairseq))
    assert facts["sha256"] == plain["sha256"] and "joins undone" in facts["note"]


def test_a_part_of_train_is_used_and_named(prepared, tmp_path):
    """40 of 160 pairs is 25.0 %, in the log and in corpus.json."""
    done = iwslt14(tmp_path / "out", prepared, expect="160/10/10")
    assert "40 of 160 pairs (25.0 %)" in made(tmp_path / "out", done)["note"]
    assert "40 of 160 pairs (25.0 %)" in done.stderr


def test_train_pairs_takes_the_first_ones(prepared, tmp_path):
    """--train-pairs 12."""
    facts = made(tmp_path / "out", iwslt14(tmp_path / "out", prepared, "--train-pairs", "12"))
    assert lines(tmp_path / "out" / "train.de") == lines(prepared / "train.de")[:12]
    assert "first 12" in facts["note"]


@pytest.mark.parametrize("expect, words", [("40/11/10", "valid has 10 pairs, not 11"), ("40/10/9", "test has 10 pairs, not 9")])
def test_a_wrong_count_of_valid_or_test_is_refused(prepared, tmp_path, expect, words):
    """The numbers that are there and that should be there."""
    refused(iwslt14(tmp_path / "out", prepared, expect=expect), words)


def test_the_official_counts_are_the_default(prepared, tmp_path):
    """7,283 valid pairs."""
    refused(call("iwslt14.py", "--out", tmp_path / "out", "--from", prepared), "valid has 10 pairs, not 7,283")


def test_more_train_pairs_than_the_campaign_had_are_refused(prepared, tmp_path):
    """40 where 30 are expected: another year's data."""
    refused(iwslt14(tmp_path / "out", prepared, expect="30/10/10"), "more than the 30")


@pytest.mark.parametrize("count", [0, 41])
def test_a_part_that_is_no_part_of_train_is_refused(prepared, tmp_path, count):
    """--train-pairs 0, and more than the 40 that are there."""
    refused(iwslt14(tmp_path / "out", prepared, "--train-pairs", count), f"--train-pairs {count}: train has 40 pairs")


def test_merges_are_refused_where_the_data_bring_their_codes(prepared, tmp_path):
    """The codes say how many there are."""
    refused(iwslt14(tmp_path / "out", prepared, "--merges", 50), "the data brings its own BPE codes; leave --merges out")


def test_capitals_in_prepared_text_are_refused_with_file_and_line(prepared, tmp_path):
    """Layout 1 is lower-cased text."""
    text = lines(prepared / "valid.en")
    text[2] = text[2].capitalize()
    (prepared / "valid.en").write_text("\n".join(text) + "\n", encoding="utf-8")
    refused(iwslt14(tmp_path / "out", prepared), "valid, line 3 has capitals")


def test_dictionaries_of_another_preparation_are_refused(prepared, tmp_path):
    """A dictionary without one subword of train."""
    words = lines(prepared / "dict.en.txt")
    (prepared / "dict.en.txt").write_text("\n".join(word for word in words if word != "the 1") + "\n", encoding="utf-8")
    refused(iwslt14(tmp_path / "out", prepared), "1 subwords of train.en are not in dict.en.txt", "'the'")


def test_missing_members_are_named(prepared, tmp_path):
    """No valid.en."""
    (prepared / "valid.en").unlink()
    refused(iwslt14(tmp_path / "out", prepared), "lacks valid.en")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_swapped_languages_are_refused(prepared, tmp_path, split):
    """English in the .de file of one split."""
    german, english = (prepared / f"{split}.{lang}" for lang in ("de", "en"))
    german.rename(prepared / "swap")
    english.rename(german)
    (prepared / "swap").rename(english)
    refused(iwslt14(tmp_path / "out", prepared), "other way round")


def test_a_broken_code_file_is_refused_with_its_line(prepared, tmp_path):
    """Three fields in line 4."""
    (prepared / "code").write_text("#version: 0.2\na b\nc d\ne f g\n", encoding="utf-8")
    refused(iwslt14(tmp_path / "out", prepared), "code, line 4")


def test_a_truncated_archive_is_refused(prepared, tmp_path):
    """Half of a .tar.gz."""
    archive = pack(tmp_path / "data.tar.gz", prepared, "iwslt14-de-en")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    refused(iwslt14(tmp_path / "out", archive), "data.tar.gz is not a whole tar archive")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_an_archive_with_a_changed_byte_is_refused(prepared, tmp_path, kind):
    """In the middle, where the text itself is: only the checksum behind it tells."""
    archive = tmp_path / f"data.tar.{kind}"
    with tarfile.open(archive, f"w:{kind}") as tar:
        tar.add(prepared, arcname="iwslt14-de-en")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    refused(iwslt14(tmp_path / "out", archive), f"data.tar.{kind} is not a whole tar archive")


def test_the_checksum_at_an_archives_end_is_compared(prepared, tmp_path):
    """All that is unpacked is right, and the last bytes, of gzip's CRC and length, are not."""
    archive = pack(tmp_path / "data.tar.gz", prepared, "iwslt14-de-en")
    archive.write_bytes(archive.read_bytes()[:-8] + bytes(8))
    refused(iwslt14(tmp_path / "out", archive), "data.tar.gz is not a whole tar archive (CRC check failed")


@pytest.mark.parametrize("name", ["../outside", "/outside"])
def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path, name):
    """Members with `..` or from the root."""
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    refused(iwslt14(tmp_path / "out", tmp_path / "bad.tar"), name, "refused")


@pytest.fixture
def original(tmp_path):
    """Layout 3: 96 tagged raw training pairs under url and title lines, and the five test sets of two segments each."""
    folder = tmp_path / "orig" / "de-en"
    folder.mkdir(parents=True)
    pairs = [(f"Der Hund, {german}!", f"The dog's {english}.") for german, english in numbers(0, 94)]
    pairs = [("<title>Ein Titel hier</title>", "<title>A title here</title>"), *pairs, ("der hund", "the dog in the big garden")]
    for side, lang in enumerate(("de", "en")):
        tags = "<url>http://x</url>\n<keywords>talks</keywords>\n<talkid>1</talkid>\n"
        text = tags + "".join(f"{pair[side]}\n" for pair in pairs)
        (folder / f"train.tags.de-en.{lang}").write_text(text, encoding="utf-8")
        for number, name in enumerate(("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")):
            segments = (f'<seg id="{part}"> {lang} Satz {number}{part}, it’s so. </seg>\n' for part in (1, 2))
            xml = '<?xml version="1.0"?>\n<title>No segment</title>\n' + "".join(segments)
            (folder / f"IWSLT14.{name}.de-en.{lang}.xml").write_text(xml, encoding="utf-8")
    return folder.parent


def test_the_original_archive_is_prepared_as_fairseqs_script_does(original, tmp_path):
    """Tags gone, lower case, one lopsided pair dropped, each 23rd of 95 pairs in valid, five test sets in order."""
    out = tmp_path / "out"
    archive = pack(tmp_path / "de-en.tgz", original / "de-en", "de-en")
    facts = made(out, iwslt14(out, archive, "--merges", "50", expect="91/4/10"))
    assert facts["pairs"] == {"train": 91, "valid": 4, "test": 10} and sum(facts["dropped"].values()) == 1
    assert lines(out / "train.de")[0] == "ein titel hier"
    assert lines(out / "train.en")[1].startswith("the dog &apos;s ")
    assert lines(out / "valid.de")[0] == f"der hund , {numbers(0, 94)[21][0]} !"  # the 23rd pair is the 22nd sentence
    assert [line.split()[2] for line in lines(out / "test.en")] == ["01", "02", "11", "12", "21", "22", "31", "32", "41", "42"]
    assert lines(out / "test.en")[0] == "en satz 01 , it &apos;s so ."


def test_a_tree_with_both_directions_is_read_in_the_papers(original, tmp_path):
    """de-en/ beside en-de/."""
    (original / "en-de").mkdir()
    for lang in ("de", "en"):
        shutil.copy(original / "de-en" / f"train.tags.de-en.{lang}", original / "en-de" / f"train.tags.en-de.{lang}")
    assert made(tmp_path / "out", iwslt14(tmp_path / "out", original, "--merges", "50", expect="91/4/10"))


def test_a_rare_trace_of_processing_leaves_the_original_text_and_is_counted(original, tmp_path):
    """One raw pair of 96 has `&apos;`: as in one's own text, up to 1 % are left out, and more are refused."""
    text = original / "de-en" / "train.tags.de-en.en"
    text.write_text(text.read_text(encoding="utf-8").replace("The dog's", "The dog&apos;s", 1), encoding="utf-8")
    refused(iwslt14(tmp_path / "out", original, "--merges", "50", expect="90/4/10"), "train.tags.de-en.en, line 2", "&apos;")
    for lang, line in (("de", "Die Katze schläft.\n"), ("en", "The cat sleeps.\n")):
        path = original / "de-en" / f"train.tags.de-en.{lang}"
        path.write_text(path.read_text(encoding="utf-8") + 10 * line, encoding="utf-8")
    facts = made(tmp_path / "out", iwslt14(tmp_path / "out", original, "--merges", "50", expect="100/4/10"))
    assert facts["dropped"]["a side holds &apos; or @@"] == 1


def test_a_folder_is_known_by_its_files_and_not_by_its_name(prepared, tmp_path):
    """Renamed, nothing is to do; with a file more, it is another corpus."""
    out = tmp_path / "out"
    made(out, iwslt14(out, prepared))
    moved = prepared.rename(tmp_path / "renamed")
    assert "nothing to do" in iwslt14(out, moved).stderr
    (moved / "more.txt").write_text("more")
    refused(iwslt14(out, moved), "was made with content of --from", f"delete {out}")


def test_an_original_archive_without_a_test_set_is_refused(original, tmp_path):
    """The missing member is named."""
    (original / "de-en" / "IWSLT14.TED.tst2011.de-en.en.xml").unlink()
    refused(iwslt14(tmp_path / "out", original), "lacks IWSLT14.TED.tst2011.de-en.en.xml")


def test_the_archive_of_the_other_direction_is_refused(original, tmp_path):
    """train.tags.en-de is another archive of the campaign."""
    for lang in ("de", "en"):
        (original / "de-en" / f"train.tags.de-en.{lang}").rename(original / "de-en" / f"train.tags.en-de.{lang}")
    refused(iwslt14(tmp_path / "out", original), "En-De", "de-en.tgz")


@pytest.fixture
def server(tmp_path):
    """A web server on this machine with what lies in tmp_path/www; its address."""
    (tmp_path / "www").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


def fetch(out, url, *more):
    """Run iwslt14.py with an address, past any proxy."""
    return call("iwslt14.py", "--out", out, "--download", url, "--expect-pairs", "91/4/10", *more, no_proxy="*")


def test_a_downloaded_archive_is_kept_in_the_cache_and_used_again(original, server, tmp_path):
    """The second corpus is made after the address has died."""
    archive = pack(tmp_path / "www" / "de-en.tgz", original / "de-en", "de-en")
    arguments = ("--merges", "50", "--cache", tmp_path / "cache")
    facts = made(tmp_path / "a", fetch(tmp_path / "a", f"{server}/de-en.tgz", *arguments))
    archive.unlink()
    assert made(tmp_path / "b", fetch(tmp_path / "b", f"{server}/de-en.tgz", *arguments))["sha256"] == facts["sha256"]


@pytest.mark.parametrize("content", [None, b"", b"<html>moved</html>"])
def test_a_dead_address_is_refused_with_the_address_and_advice(server, tmp_path, content):
    """404, an empty answer, and a web page instead of an archive."""
    if content is not None:
        (tmp_path / "www" / "de-en.tgz").write_bytes(content)
    done = fetch(tmp_path / "out", f"{server}/de-en.tgz", "--cache", tmp_path / "cache")
    refused(done, f"{server}/de-en.tgz", "--from")
    assert not list((tmp_path / "cache").iterdir())


class BreaksOff(http.server.BaseHTTPRequestHandler):
    """Answers with the first half of `archive`, with its whole length or, where `chunked`, as a part of a chunk."""

    archive, chunked = b"", False
    protocol_version = "HTTP/1.1"

    def do_GET(self):  # noqa: N802  http.server's name
        """Send a half and hang up."""
        self.send_response(200)
        if self.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(self.archive)))
        self.end_headers()
        start = f"{len(self.archive):x}\r\n".encode() if self.chunked else b""
        self.wfile.write(start + self.archive[: len(self.archive) // 2])
        self.close_connection = True

    def log_message(self, *_):
        """Nothing."""


@pytest.mark.parametrize(("chunked", "words"), [(False, "broke off after"), (True, "cannot download")])
def test_a_download_that_breaks_off_is_refused_and_not_kept(original, tmp_path, chunked, words):
    """With Content-Length and with chunked encoding; the next start fetches again."""
    archive = pack(tmp_path / "de-en.tgz", original / "de-en", "de-en").read_bytes()
    handler = type("Handler", (BreaksOff,), {"archive": archive, "chunked": chunked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}/de-en.tgz"
        refused(fetch(tmp_path / "out", url, "--cache", tmp_path / "cache"), words, url, "start again")
        web.shutdown()
    assert not list((tmp_path / "cache").iterdir())


def test_a_download_that_arrives_damaged_is_refused_and_not_kept(original, server, tmp_path):
    """All bytes are there, and gzip's checksum does not fit."""
    archive = pack(tmp_path / "www" / "de-en.tgz", original / "de-en", "de-en")
    archive.write_bytes(archive.read_bytes()[:-8] + bytes(8))
    done = fetch(tmp_path / "out", f"{server}/de-en.tgz", "--cache", tmp_path / "cache")
    refused(done, f"the answer of {server}/de-en.tgz is", "not a whole tar archive", "start again")
    assert not list((tmp_path / "cache").iterdir())


# -------------------------------------------------------------------------------------------------------------- WMT14


@pytest.fixture(scope="module")
def newstest():
    """3,000 and 3,003 pairs (German, English), the lengths of newstest2013 and 2014; the first of each is told apart."""
    first = ('Es ist die Wieder-Wahl. Er sagte "nein".', 'It\'s the re-election. He said "no".')
    return [[first, *[("ja", "yes")] * (lines - 1)] for lines in (3000, 3003)]


@pytest.fixture
def wmt14_parts(tmp_path, newstest):
    """Raw and tokenized, truecased files side by side: 200 raw training pairs, 20 tokenized ones, both news tests."""
    folder = tmp_path / "wmt14"
    write_pairs(folder / "train.europarl", [(german, f"the {english}") for german, english in numbers(0, 200)])
    write_pairs(folder / "train.web.tok", [("das ist &quot; gut &quot; . ja", "the world &apos;s re @-@ union . yes")] * 20)
    write_pairs(folder / "newstest2014", newstest[1])
    german = "es ist die Wieder @-@ Wahl . er sagte &quot; nein &quot; ."
    english = "it &apos;s the re @-@ election . he said &quot; no &quot; ."
    write_pairs(folder / "newstest2013.tok", [(german, english), *newstest[0][1:]])
    return folder


def wmt14(out, source, *more):
    """Run wmt14.py with few BPE merges."""
    return call("wmt14.py", "--out", out, "--from", source, "--merges", "30", *more)


def official(folder, newstest):
    """The five archives of WMT14 En-De below wmt13/ and wmt14/, with a few training pairs and another language's files."""
    parts = {
        "wmt13/training-parallel-europarl-v7.tgz": "training/europarl-v7.de-en",
        "wmt13/training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
        "wmt14/training-parallel-nc-v9.tgz": "training/news-commentary-v9.de-en",
    }
    for number, (archive, prefix) in enumerate(parts.items()):
        root = folder / f"part{number}"
        (folder / archive).parent.mkdir(parents=True, exist_ok=True)
        write_pairs(root / prefix, numbers(100 * number, 40 + number))
        write_pairs(root / "training" / "europarl-v7.cs-en", numbers(0, 5))
        pack(folder / archive, root, ".")
    sgml = {"dev.tgz": "dev/newstest2013-{}.{}.sgm", "test-full.tgz": "test-full/newstest2014-deen-{}.{}.sgm"}
    for (archive, name), pairs in zip(sgml.items(), newstest, strict=True):
        root = folder / archive.removesuffix(".tgz")
        for side, lang, kind in ((0, "de", "ref"), (1, "en", "src")):
            path = root / name.format(kind, lang)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(f'<seg id="{number}">{html.escape(pair[side])}</seg>\n' for number, pair in enumerate(pairs, 1))
            path.write_text(f"<doc>\n{text}</doc>\n", encoding="utf-8")
        pack(folder / "wmt14" / archive, root, ".")


def test_raw_and_tokenized_parts_of_wmt14_become_one_form(wmt14_parts, tmp_path):
    """The same sentence comes out of the tokenized, truecased valid set and of the raw test set; both sets are whole (O14)."""
    pairs = numbers(0, 200)
    write_pairs(wmt14_parts / "train.europarl", [*pairs[:-1], (pairs[-1][0], "it&apos;s @@ here")])
    out = tmp_path / "out"
    facts = made(out, wmt14(out, pack(tmp_path / "wmt14.tar.gz", wmt14_parts, "wmt14")))
    assert facts["pairs"] == {"train": 219, "valid": 3000, "test": 3003}
    assert facts["dropped"] == {"a side holds &apos; or @@": 1}
    for split in ("valid", "test"):
        assert lines(out / f"{split}.en")[0] == "It &apos;s the re-election . He said &quot; no &quot; ."
        assert lines(out / f"{split}.de")[0] == "Es ist die Wieder-Wahl . Er sagte &quot; nein &quot; ."
    assert lines(out / "train.en").count("The world &apos;s re-union . Yes") == 20
    assert (facts["source_lang"], facts["target_lang"]) == ("en", "de")
    assert "train.europarl (199), train.web.tok (20)" in facts["origin"]
    assert "part of WMT14's about 4.5 million pairs" in facts["note"] and "newstest2013.tok" in facts["note"]


def test_the_official_archives_are_downloaded_kept_and_read(newstest, server, tmp_path):
    """Three corpora named in corpus.json, German-English alone of each; valid and test from SGML."""
    official(tmp_path / "www", newstest)
    out = tmp_path / "out"
    arguments = ("--download", server, "--cache", tmp_path / "cache", "--merges", "30")
    facts = made(out, call("wmt14.py", "--out", out, *arguments, no_proxy="*"))
    assert facts["pairs"] == {"train": 40 + 41 + 42, "valid": 3000, "test": 3003}
    assert "Common Crawl (41), Europarl v7 (40), News Commentary v9 (42)" in facts["origin"] and facts["note"] == ""
    assert lines(out / "test.en")[0] == "It &apos;s the re-election . He said &quot; no &quot; ."
    assert {path.name for path in (tmp_path / "cache").iterdir()} >= {"training-parallel-nc-v9.tgz", "dev.tgz", "test-full.tgz"}


def test_an_official_archive_with_other_contents_is_refused_by_name(newstest, tmp_path):
    """News Commentary of another year under this year's name."""
    official(tmp_path, newstest)
    archive = tmp_path / "wmt14" / "training-parallel-nc-v9.tgz"
    write_pairs(tmp_path / "other" / "news-commentary-v12.de-en", numbers(0, 5))
    pack(archive, tmp_path / "other", "training")
    refused(wmt14(tmp_path / "out", tmp_path / "wmt14"), str(archive), "holds no news-commentary-v9.de-en")


def test_an_archive_of_another_campaign_is_refused(prepared, tmp_path):
    """IWSLT14's, given for WMT14's."""
    archive = pack(tmp_path / "data.tar.gz", prepared, "iwslt14-de-en")
    refused(wmt14(tmp_path / "out", archive), "found no newstest2013", "newstest2014.{en,de}")


@pytest.mark.parametrize(
    ("kept", "words"),
    [(2737, ("2,737 lines, the filtered set", "3,003", "test-full.tgz")), (3000, ("3,000 lines, not the 3,003",))],
)
def test_a_test_set_that_is_not_whole_is_refused(wmt14_parts, tmp_path, newstest, kept, words):
    """O29: newstest2014 has 3,003 lines; 2,737 were first published."""
    write_pairs(wmt14_parts / "newstest2014", newstest[1][:kept])
    refused(wmt14(tmp_path / "out", wmt14_parts), *words)


def test_wmt14_text_with_the_languages_swapped_is_refused(wmt14_parts, tmp_path):
    """English in train.europarl.de."""
    write_pairs(wmt14_parts / "train.europarl", [(f"the {english}", german) for german, english in numbers(0, 200)])
    refused(wmt14(tmp_path / "out", wmt14_parts), "other way round")


def test_sides_of_a_news_test_of_different_lengths_are_refused(wmt14_parts, tmp_path):
    """3,003 German lines and 3,002 English ones."""
    english = wmt14_parts / "newstest2014.en"
    english.write_text(english.read_text(encoding="utf-8").removesuffix("yes\n"), encoding="utf-8")
    refused(wmt14(tmp_path / "out", wmt14_parts), "newstest2014.en has 3,002 lines", "newstest2014.de has 3,003")


def test_a_text_without_its_other_side_is_refused(wmt14_parts, tmp_path):
    """train.web.tok.de is missing."""
    (wmt14_parts / "train.web.tok.de").unlink()
    refused(wmt14(tmp_path / "out", wmt14_parts), "train.web.tok.en is there without its de side")


def test_training_text_that_was_processed_before_is_refused_with_file_and_line(wmt14_parts, tmp_path):
    """O32: more than one raw line in a hundred with `&apos;` is no accident."""
    pairs = numbers(0, 200)
    write_pairs(wmt14_parts / "train.europarl", [*pairs[:-3], *[("der hund", "the dog &apos;s")] * 3])
    refused(wmt14(tmp_path / "out", wmt14_parts), "train.europarl.en, line 198", "already tokenized")


SHARED = ("archives.py", "parallel_text.py")  # no commands


@pytest.mark.parametrize("script", sorted(path.name for path in CORPORA.glob("*.py") if path.name not in SHARED))
def test_help_shows_two_examples(script):
    """--help prints the usage and two commands that begin with this script."""
    done = call(script, "--help")
    assert done.returncode == 0
    assert done.stdout.split("Two examples")[1].count(f"python recipes/corpora/{script} ") == 2
