"""The report of a study: RESULTS.md and RESULTS.html (one page, the same text), results.tsv and figures, from run folders alone.

    fairseq-ln report runs/quickstart
    fairseq-ln report runs/iwslt14-cpu --plan recipes/runs.tsv --out results/iwslt14-cpu
    fairseq-ln report runs/iwslt14-cpu --watch

The same run folders give the same files, byte for byte. Runs that diverged or are not finished are shown as such, and
with --plan, a table of all runs that the study is to have, those that are not there at all. --watch shows how far a
running study is, and writes nothing.
"""

import logging
import re
from pathlib import Path

from fairseq_lnplugin.study import bert, claims, tables, watch
from fairseq_lnplugin.study.page import page
from fairseq_lnplugin.study.run_folder import RunFolderError, read_chosen, read_plan, read_study
from fairseq_lnplugin.study.wording import count
from fairseq_lnplugin.whole_file import replacing


def add_arguments(parser):
    """The flags of ``fairseq-ln report``."""
    parser.add_argument("runs", metavar="RUNS", help="folder of a study, which holds <run>/seed<k>/")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: RUNS itself)")
    parser.add_argument(
        "--plan", metavar="FILE", help="table of the study's runs, such as recipes/runs.tsv, to name what is missing"
    )
    parser.add_argument("--watch", action="store_true", help="show how far the study is, again and again, and write nothing")


def run(args):
    """Read the runs, write the report and say on standard output what it is of; or show how far they are, with --watch.

    Raises:
        SystemExit: flags that do not go together, a run folder or the plan that cannot be read, a package that is missing, or
            a file that cannot be written.

    """
    for name in ("matplotlib", "markdown_it", "sacrebleu"):  # fairseq's imports open the root logger to all they say
        logging.getLogger(name).setLevel(logging.WARNING)
    if args.watch and args.out is not None:
        raise SystemExit("fairseq-ln report: --watch writes nothing; leave --out out, or --watch")
    try:
        if args.watch:
            return watch.watch(lambda: progress(args))
        runs, plan, to_go = study(args)
        if all(run.settings.get("task") == "masked_lm" for run in runs):
            text, drawings, files = bert.page(runs, plan, to_go)
        else:
            evidence = claims.Evidence(runs, plan, to_go)
            text, drawings = page(runs, plan, to_go, tested(evidence, runs))
            files = {"results.tsv": tables.tsv(tables.results(runs)).encode()}
    except RunFolderError as error:
        raise SystemExit(f"fairseq-ln report: {error}") from None
    out = Path(args.runs if args.out is None else args.out)
    files |= draw(drawings)
    files["RESULTS.html"] = html(text, files)
    files["RESULTS.md"] = text.encode()  # the last: recipes take it for the report's stamp
    write(out, stale(out, files) | files)
    unfinished = sum(not run.done for run in runs)
    state = f" ({unfinished} not finished)" if unfinished else ""
    print(f"{out / 'RESULTS.md'}: {count(len(runs), 'run')}{state}, {count(len(drawings), 'figure')}")


def study(args):
    """The runs, the rows of the plan and what has not begun; the runs in the plan's order and with its labels if there is one.

    The plan has the last word on what the paper says of a run: a run's folder keeps what was known when it was trained.
    """
    runs = read_study(args.runs)
    plan = read_plan(args.plan, {run.settings["study"] for run in runs}) if args.plan else []
    order = {row["run"]: i for i, row in enumerate(plan)}
    for run in runs:
        if run.name in order:
            row = plan[order[run.name]]
            run.settings.update({name: row[name] for name in tables.LABELS if name in row})
    runs = sorted(runs, key=lambda run: order.get(run.name, len(order)))
    return runs, plan, tables.to_go(runs, plan, read_chosen(args.runs))


def progress(args):
    """The runs and what has not begun."""
    runs, _, to_go = study(args)
    return runs, to_go


def tested(evidence, runs):
    """The claims, and the significance.Difference of each pair of runs that they compare, or of both positions."""
    found = claims.claims(evidence)
    pairs = [pair for claim in found for pair in claim.pairs] or claims.positions(evidence)
    if not pairs:
        return found, []
    from fairseq_lnplugin.study import significance  # sacrebleu is slow to import, and not every report needs it

    return found, significance.differences(pairs, tables.by_name(runs))


def draw(drawings):
    """The figures' files: name -> bytes."""
    try:
        from fairseq_lnplugin.study import plots
    except ImportError as error:
        raise SystemExit(f"fairseq-ln report: the figures need matplotlib ({error}); pip install matplotlib") from None
    files = {}
    for drawing in drawings:
        style = plots.styles([run.name for run in drawing.runs])
        figure = getattr(plots, drawing.function)(*drawing.arguments, style)
        files |= {f"figures/{drawing.name}.{kind}": plots.rendered(figure, kind) for kind in ("png", "svg")}
    return files


def html(text, files):
    """RESULTS.html of the text of RESULTS.md."""
    try:
        from fairseq_lnplugin.study import web_page
    except ImportError as error:
        raise SystemExit(f"fairseq-ln report: RESULTS.html needs markdown-it-py ({error}); pip install markdown-it-py") from None
    return web_page.web_page(text, files).encode()


def stale(folder, files):
    """The figures that an older RESULTS.md shows and the new report lacks, for :func:`write` to take away: name -> None."""
    try:
        old = (folder / "RESULTS.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: None for name in re.findall(r"\((figures/[\w.-]+\.(?:png|svg))\)", old) if name not in files}


def write(folder, files):
    """Write each file whole or not at all; ``files``: name -> bytes, or None for one that must not be there.

    Raises:
        SystemExit: the folder or a file cannot be written.

    """
    path = folder
    try:
        for name, content in files.items():
            path = folder / name
            if content is None:
                path.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                new.write_bytes(content)
    except OSError as error:
        raise SystemExit(
            f"fairseq-ln report: {path} cannot be written ({error.strerror}); give another folder with --out"
        ) from None
