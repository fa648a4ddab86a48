"""Tests of fairseq_lnplugin/study/significance.py: the paired bootstrap test between two runs' translations."""

import random
import re

import pytest
from run_folders import EPOCHS, POST, PRE, PRE_SETTINGS, table, write_run, write_translations
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from fairseq_lnplugin import cli
from fairseq_lnplugin.study.claims import Evidence, claims
from fairseq_lnplugin.study.run_folder import read_study
from fairseq_lnplugin.study.score import split_compounds
from fairseq_lnplugin.study.significance import differences
from fairseq_lnplugin.study.tables import by_name

GENERATOR = random.Random(1)
TARGETS = [" ".join(f"Wort{GENERATOR.randrange(30)}" for _ in range(8)) for _ in range(40)]


def worse(share, seed):
    """The targets with a share of their words replaced, in lower case."""
    generator = random.Random(seed)
    words = [[word if generator.random() >= share else "falsch" for word in line.split()] for line in TARGETS]
    return [" ".join(line).lower() for line in words]


def two_runs(root, post, pre, targets=TARGETS, **more):
    """Two finished runs of one seed with these translations of their best epoch, the second."""
    folders = [write_run(root, lines=len(TARGETS), **more), write_run(root, lines=len(TARGETS), **{**PRE_SETTINGS, **more})]
    for folder, texts, of in zip(folders, (post, pre), (TARGETS, targets), strict=True):
        write_translations(folder, 2, texts, of)
    return folders


def compared(root):
    """The tests of Pre-LN against Post-LN."""
    return differences([(PRE, POST)], by_name(read_study(root)))


def test_score_and_p_value_are_sacrebleus_own(tmp_path):
    """Its PairedTest on the same lists, in lower case as the signature of the run's score says."""
    post, pre = worse(0.3, 1), worse(0.25, 2)
    two_runs(tmp_path, post, pre)
    (test,) = compared(tmp_path)
    metric = {"BLEU": BLEU(lowercase=True, tokenize="none", force=True)}
    _, scores = PairedTest([("post", post), ("pre", pre)], metric, [TARGETS], test_type="bs")()
    expected = scores["BLEU"]
    assert (test.name, test.other, test.seed, test.refusal) == (PRE, POST, 1, "")
    assert (test.bleu, test.other_bleu, test.p_value) == (expected[1].score, expected[0].score, expected[1].p_value)
    assert "case:lc" in test.signature and "bs:1000|seed:12345" in test.signature


def test_hyphenated_words_are_taken_apart_where_the_score_says_so(tmp_path):
    """WMT14's scores: BLEU on both sides' split text, as fairseq-ln score --compound-split has it."""
    targets = [line.replace(" ", "-", 1) for line in TARGETS]
    post, pre = ([line.replace(" ", "-", 1) for line in worse(share, seed)] for share, seed in ((0.3, 1), (0.25, 2)))
    for folder in two_runs(tmp_path, post, pre, targets):
        scores = folder / "scores.tsv"
        scores.write_text(re.sub(r"(case:lc[^\t]*tok:none[^\t]*)", r"\1|compounds:split", scores.read_text()))
    write_translations(tmp_path / POST / "seed1", 2, post, targets)
    (test,) = compared(tmp_path)
    split = [split_compounds(texts) for texts in (pre, targets)]
    metric = BLEU(lowercase=True, tokenize="none", force=True)
    assert test.refusal == "" and test.bleu == pytest.approx(metric.corpus_score(split[0], [split[1]]).score)
    assert test.bleu != pytest.approx(metric.corpus_score(pre, [targets]).score)
    assert test.signature.endswith("|compounds:split")


def test_a_large_difference_is_significant_and_a_small_one_is_not(tmp_path):
    """A tenth of the words wrong beside six tenths; three tenths twice, drawn anew."""
    two_runs(tmp_path / "large", worse(0.6, 1), worse(0.1, 2))
    two_runs(tmp_path / "small", worse(0.3, 1), worse(0.3, 3))
    assert compared(tmp_path / "large")[0].p_value < 0.01 and compared(tmp_path / "small")[0].p_value > 0.05


def test_every_seed_that_both_runs_finished_is_tested(tmp_path):
    """Seeds 1 and 2 of the one, 2 and 3 of the other, and one not finished."""
    for seed in (1, 2):
        write_translations(write_run(tmp_path, seed=seed, lines=40), 2, worse(0.3, seed), TARGETS)
    for seed in (2, 3):
        write_translations(write_run(tmp_path, lines=40, **{**PRE_SETTINGS, "seed": seed}), 2, worse(0.2, seed), TARGETS)
    write_run(tmp_path, done=False, **{**PRE_SETTINGS, "seed": 1})
    assert [(test.seed, test.refusal) for test in compared(tmp_path)] == [(2, "")]


@pytest.mark.parametrize(
    "targets, words",
    [
        ([*TARGETS[:7], "ein anderer Satz", *TARGETS[8:]], "the references differ, first in sentence 7"),
        (TARGETS[:39], "the translations of iwslt14-pre-adam-lr5e-4-step are not whole: 39 of 40 sentences, 39 targets"),
    ],
)
def test_runs_on_other_references_are_refused(tmp_path, targets, words):
    """Another sentence, or one that lacks; there is no number then."""
    two_runs(tmp_path, worse(0.3, 1), worse(0.2, 2)[: len(targets)], targets)
    (test,) = compared(tmp_path)
    assert (test.refusal, test.p_value, test.bleu) == (words, None, None)


def test_test_sets_of_different_lengths_are_refused(tmp_path):
    """Both are whole, as their scores say."""
    post, pre = two_runs(tmp_path, worse(0.3, 1), worse(0.2, 2))
    write_translations(pre, 2, worse(0.2, 2)[:30], TARGETS[:30])
    (pre / "scores.tsv").write_text((pre / "scores.tsv").read_text().replace("\t40\t", "\t30\t"))
    assert compared(tmp_path)[0].refusal == "the references differ: 30 and 40 sentences"


def test_runs_without_translations_are_refused(tmp_path):
    """Those of another epoch do not count."""
    _, pre = two_runs(tmp_path, worse(0.3, 1), worse(0.2, 2))
    for path in (pre / "decode").iterdir():
        path.rename(path.with_name(path.name.replace("epoch2", "epoch3")))
    assert compared(tmp_path)[0].refusal == f"the folder of {PRE} has no translations of epoch 2"


def test_a_run_without_a_score_is_refused(tmp_path):
    """One that diverged at once has translated nothing."""
    write_run(tmp_path)
    write_run(tmp_path, epochs=[], diverged="7\tNan\n", **PRE_SETTINGS)
    assert compared(tmp_path)[0].refusal == f"{PRE} has no score on the test set"


def test_equal_translations_have_no_p_value(tmp_path):
    """Sacrebleu's test gives a difference of 0 the smallest p-value there is."""
    two_runs(tmp_path, worse(0.3, 1), worse(0.3, 1))
    assert compared(tmp_path)[0].refusal == "both translate every sentence alike"


def test_translations_that_are_no_text_are_refused(tmp_path):
    """The file is named."""
    _, pre = two_runs(tmp_path, worse(0.3, 1), worse(0.2, 2))
    path = pre / "decode" / "epoch2.test.shard1.txt"
    path.write_bytes(b"H-1\t\xff\n")
    assert compared(tmp_path)[0].refusal == f"{path} cannot be read"


def test_both_positions_are_tested_where_no_claim_compares_runs(tmp_path):
    """Fairseq's own setting: Pre-LN has a warm-up too, of which the paper says nothing."""
    warmed = {"schedule": "warmup_inverse_sqrt", "warmup_updates": "1000", "hold_epochs": "", "decay": "", "decay_factor": ""}
    for settings, hypotheses in (({}, TARGETS), (PRE_SETTINGS | warmed, worse(0.5, 2))):
        folder = write_run(tmp_path, epochs=[(5.0, 4.0, 10.0, 20.0)], lines=len(TARGETS), **settings)
        write_translations(folder, 1, hypotheses, TARGETS)
    assert claims(Evidence(read_study(tmp_path), [])) == []
    cli.main(["report", str(tmp_path)])
    (row,) = table((tmp_path / "RESULTS.md").read_text(), "## Paired bootstrap tests")
    assert (row["run"], row["against"], row["p-value"]) == (PRE, POST, "≤ 0.001")


def test_the_report_shows_tests_and_refusals(tmp_path):
    """A row each; the p-value of the pair that the paper's claim compares, and why another has none."""
    two_runs(tmp_path, worse(0.3, 1), worse(0.2, 2))
    write_run(tmp_path, epochs=EPOCHS, run="iwslt14-post-adam-lr5e-4-warmup1", warmup_updates="1")
    assert cli.main(["report", str(tmp_path)]) == 0
    rows = {row["run"]: row for row in table((tmp_path / "RESULTS.md").read_text(), "## Paired bootstrap tests")}
    expected = compared(tmp_path)[0]
    assert rows[PRE]["p-value"] == f"{expected.p_value:.3f}" != "0.001"
    assert rows[PRE]["difference"] == f"{expected.bleu - expected.other_bleu:+.2f}"
    assert rows["iwslt14-post-adam-lr5e-4-warmup1"]["p-value"].endswith("has no translations of epoch 2")
