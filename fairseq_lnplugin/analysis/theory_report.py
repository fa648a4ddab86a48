"""Lemmas 1 to 3, theorem 1 and appendix F of the paper, checked by drawing weights; on its own model and on the one that trains.

    fairseq-ln theory --out theory
    fairseq-ln theory data-bin/iwslt14 --out theory        # also the training model's layers at initialization, on these data

The paper's own model (section 3.3) has one head, uniform attention, Gaussian matrices of Xavier's variance and Gaussian inputs.

Every check has a 95 % interval, over independent draws of weights and inputs (or seeds of the training model), and a verdict:
*holds* if the whole interval lies in the range that the claim allows, *FAILS* if not. Where nothing guarantees the claim (an
assumption about the training model, a reading past the proof) it *differs* if the whole interval lies outside the range, and is
*undecided* if it lies across its end. What is claimed of every layer is decided by the worst layer. *Measured* is what nothing is
claimed of. Exit status 1 when a check fails.
"""

import json
import math
import shlex
import sys
import time
from pathlib import Path

import torch

from fairseq_lnplugin.analysis import MAX_SEED, figures, paper, quiet, theory, theory_on_model
from fairseq_lnplugin.analysis.gradient_report import data_words
from fairseq_lnplugin.study import tables
from fairseq_lnplugin.study.environment import environment
from fairseq_lnplugin.transformer_ln_study import as_flag
from fairseq_lnplugin.user_error import UserError
from fairseq_lnplugin.weight_init import WEIGHT_INITS
from fairseq_lnplugin.whole_file import write_text

COLUMNS = "model item claim setting measured low high allowed_low allowed_high verdict note".split()


def add_arguments(parser):
    """The flags of ``fairseq-ln theory``."""
    parser.add_argument(
        "data", metavar="DATA", nargs="?", help="folder made by fairseq-preprocess, to check the training model on as well"
    )
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where THEORY.md, theory.tsv, theory.json and figures go")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all draws (default: %(default)s)")
    parser.add_argument("--data-name", metavar="NAME", help="what the report calls DATA (default: as its corpus.json or folder)")
    parser.add_argument("--arch", metavar="NAME", help=f"of the training model (default: {paper.SETTINGS['arch']})")
    parser.add_argument("--weight-init", choices=sorted(WEIGHT_INITS), help=f"of the training model (default: {paper.INIT})")


@quiet()
def run(args):
    """Make all checks and write the report; returns 1 if a claim fails.

    Raises:
        SystemExit: --seed, DATA or --arch cannot be used, or --out cannot be written.

    """
    if not 0 <= args.seed <= MAX_SEED:
        raise SystemExit(f"fairseq-ln theory: --seed {args.seed} is not a whole number from 0 to {MAX_SEED}")
    for name in ("data_name", "arch", "weight_init"):
        if not args.data and getattr(args, name) is not None:
            raise SystemExit(f"fairseq-ln theory: {as_flag(name)} is about the training model; give DATA, or leave it out")
    began = time.monotonic()
    try:
        model = training_models(args) if args.data else None
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(args.seed)
        checks = [check for make in theory.CHECKS for check in told(make(generator))]
        on_model = [check for found in (model.checks() if model else ()) for check in told(found)]
        command = ["fairseq-ln", "theory", *(["DATA"] if model else []), "--out", "OUT", "--seed", str(args.seed)]
        command += ["--arch", model.described["arch"], "--weight-init", model.described["weight_init"]] if model else []
        facts = {"command": shlex.join(command), "seconds": round(time.monotonic() - began)}
        facts |= {"model": model and model.described, "environment": environment()}
        write(out, checks, on_model, facts)
    except UserError as error:
        raise SystemExit(f"fairseq-ln theory: {error}") from None
    except OSError as error:
        raise SystemExit(f"fairseq-ln theory: {args.out} cannot be written ({error.strerror}); give another --out") from None
    failed = sum(check.verdict == "FAILS" for check in checks + on_model)
    print(f"{len(checks) + len(on_model)} checks, {failed} failed; see {out / 'THEORY.md'}")
    return 1 if failed else 0


def training_models(args):
    """The training models that the flags ask for; the paper's size and init where a flag is left out."""
    arch, weight_init = args.arch or paper.SETTINGS["arch"], args.weight_init or paper.INIT
    return theory_on_model.Models(args.data, arch, weight_init, args.seed, args.data_name)


def told(checks):
    """The checks, once their verdicts have gone to standard error."""
    for check in checks:
        print(f"{check.verdict:9} {check.item}: {check.claim}; {number(check.measured)}", file=sys.stderr, flush=True)
    return checks


# -- Report --


def write(out, checks, on_model, facts):
    """Write all files of the report into the folder ``out``, each whole or not at all.

    ``checks``, ``on_model``: lists of :class:`~fairseq_lnplugin.analysis.theory.Check`, on the paper's model and on the one that
    trains; ``facts``: what theory.json says of the command, the time, the training model (None: not checked) and the machine.

    Raises:
        OSError: a file cannot be written.

    """
    write_text(out / "theory.tsv", tsv(checks, on_model))
    write_text(out / "theory.json", json.dumps(as_json(checks, on_model, facts), indent=1, allow_nan=False) + "\n")
    drawn = figures.theory(out / "figures", checks + on_model)
    write_text(out / "THEORY.md", markdown(checks, on_model, facts, drawn))


def rows_of(checks, on_model):
    """One dict with the keys :data:`COLUMNS` a check."""
    for where, of_model in (("theory", checks), ("training", on_model)):
        for check in of_model:
            allowed = check.allowed or (None, None)
            cells = (where, check.item, check.claim, check.setting, *check.measured, *allowed, check.verdict, check.note)
            yield dict(zip(COLUMNS, cells, strict=True))


def tsv(checks, on_model):
    """theory.tsv; empty where nothing is claimed or a range is open."""

    def cell(value):
        if isinstance(value, float):
            return f"{value:.6g}" if math.isfinite(value) else ""
        return "" if value is None else str(value)

    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(cell(value) for value in row.values()) for row in rows_of(checks, on_model)]
    return "\n".join(lines) + "\n"


def as_json(checks, on_model, facts):
    """theory.json: the same, and what it was measured with."""

    def known(value):
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return facts | {"checks": [{name: known(value) for name, value in row.items()} for row in rows_of(checks, on_model)]}


def number(estimate):
    """``1.503 [1.484, 1.522]``."""
    value, low, high = estimate
    return f"{value:.4g}" if math.isnan(low) or low == high else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def allowed_range(check):
    """The range that a claim allows, in words."""
    if check.allowed is None:
        return "-"
    low, high = check.allowed
    if math.isinf(low):
        return f"at most {high:.4g}"
    if high - low < 1e-6:
        return f"{(low + high) / 2:.4g} ± {(high - low) / 2:.0e}"
    return f"{low:.4g} to {high:.4g}"


def markdown(checks, on_model, facts, drawn):
    """THEORY.md."""
    lines = ["# The paper's theory, checked", ""]
    lines += verdicts_section(checks + on_model, facts)
    lines += paper_section(checks)
    lines += model_section(on_model, facts["model"])
    lines += ["## Figure", "", *(f"![{path.stem}](figures/{path.name})" for path in drawn if path.suffix == ".png"), ""]
    return "\n".join(lines)


def verdicts_section(checks, facts):
    """The command, how many claims have which verdict, and each claim that does not hold or is none."""
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in theory.VERDICTS}
    return [
        f"`{facts['command']}`, {facts['seconds']} seconds on {facts['environment']['device']}, commit "
        f"{tables.commit(facts['environment']) or 'unknown'}: {counts['holds']} claims hold, "
        f"{counts['FAILS']} fail, {counts['differs']} that nothing guarantees differ, {counts['undecided']} undecided, "
        f"{counts['measured']} without a claim.",
        "",
        *(
            f"- {check.verdict}: {check.item}, {check.claim} ({check.setting}): {number(check.measured)}"
            for verdict in theory.VERDICTS[1:]
            for check in checks
            if check.verdict == verdict
        ),
        "- All else holds.",
        "",
    ]


def paper_section(checks):
    """The checks on the paper's own model."""
    return [
        "## In the paper's setting",
        "",
        "One head, W_Q = W_K = 0 (uniform attention), all other matrices Gaussian with variance 2 / (n_in + n_out), no biases, "
        f"Gaussian inputs, {theory.TOKENS} positions, in float64. Brackets: 95 % interval over draws. A claim holds if the whole "
        "interval lies in the range.",
        "",
        *check_table(checks),
        "",
        "What appendix F says and what it does not: its factor 1 / (1 + rho) belongs to the LN on the path of the gradient, and "
        "to the mean of the sub-layer's Jacobian, and that is what is checked. The gradient itself also passes the branch, "
        "whose Jacobian has mean 0 and yet multiplies the expected squared norm by 1 + rho; in this setting the two cancel, so "
        "that the norm of one draw's gradient has hardly a factor at all in Post-LN. In Pre-LN it grows a little away from the "
        "output, by about 1 + 1 / (2l) a layer, which goes to 1 for large l. What the training model does is measured below.",
        "",
    ]


def model_section(checks, model):
    """The checks on the training model; ``model``: what it is, of :class:`~theory_on_model.Models`, or None."""
    heading = ["## On the training model's own layers", ""]
    if model is None:
        return [*heading, "Not checked: no data folder was given.", ""]
    # the gain 1/sqrt(2) is that of fairseq's own start of attention
    values = "; its values and output projection add d/2 at most for an attention sub-layer where the theory's W_V adds d"
    values = "" if model["weight_init"] == "xavier_normal" else values
    return [
        *heading,
        f"{model['arch']}, `--weight-init {model['weight_init']}`, at initialization, dropout 0, on {model['batches']} "
        f"mini-batches of at most {model['max_tokens']} tokens from {data_words(model['data'])}. "
        "Brackets: 95 % interval over seeds, one value a seed; what is said of all layers is judged by the worst, each layer "
        "over the seeds. `fairseq-ln gradients` judges bounded hidden states by the same rule, in models with dropout and "
        "more tokens.",
        "",
        *check_table(checks),
        "",
        "Lemma 2's ranges are wider than its claims by what a layer's mean varies over so few seeds: 12 % to each side at "
        "width 512, and as 1 / sqrt(d) below it. Where the model is not the theory's: its inputs start at 1.5 d and not at d "
        f"(a word's embedding brings d, the sinusoids d/2); its attention has {model['heads']} heads and random W_Q, W_K, so "
        f"that it is near uniform but not uniform{values}; its decoder layers have three sub-layers; its tokens are not "
        "independent.",
        "",
    ]


def check_table(checks):
    """Markdown rows."""
    lines = ["| item | claim | setting | measured | range | verdict |", "|---|---|---|---|---|---|"]
    for check in checks:
        claim = check.claim.replace("||", "\u2016").replace("|", "\\|")  # a bar would end the cell
        setting = "; ".join(part for part in (check.setting, check.note) if part).replace("||", "\u2016")
        cells = (check.item, claim, setting, number(check.measured), allowed_range(check), check.verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return lines
