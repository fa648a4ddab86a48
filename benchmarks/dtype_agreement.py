r"""Whether bfloat16 products change training by more than another seed does.

    for dtype in float32 bfloat16; do
      COMPUTE_DTYPE=$dtype MAX_UPDATE=300 RUNS=runs/dtype-$dtype PRESET=cpu IWSLT14=PATH bash recipes/iwslt14.sh \
        --figure all --seeds "1 2 3" --only iwslt14-pre-adam-lr5e-4-step --only iwslt14-post-adam-lr5e-4-warmup4000 \
        --only iwslt14-post-adam-lr5e-4-held --only iwslt14-post-adam-lr5e-4-warmup1 --stop-stage train
    done
    python benchmarks/dtype_agreement.py runs/dtype-float32 runs/dtype-bfloat16 --out benchmarks/DTYPES.md

Prints a row for each run that both folders hold: the last validation loss of each seed in both types, the largest difference of
a seed's two losses, and the spread (highest less lowest) over the seeds in float32, which the difference should not exceed; and
whether both types agree on which seeds diverged.
"""

import argparse
import math
import sys
from pathlib import Path

import results_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fairseq_lnplugin.study.run_folder import RunFolderError, read_study  # noqa: E402
from fairseq_lnplugin.study.tables import commit, pairs_text  # noqa: E402


def losses(runs):
    """The last validation loss (base 2, smoothed) by run name and seed; NaN for a seed that diverged or has none yet."""
    found = {}
    for run in runs:
        ended = math.nan if run.diverged or run.last is None else run.last.valid_loss
        found.setdefault(run.name, {})[run.seed] = ended
    return found


def compared(first, second):
    """A row for each run that both hold: dict of losses by seed, ``difference``, ``spread``, ``same_divergence``.

    ``first``, ``second``: of :func:`losses`; the spread is that of ``first``.
    """
    rows = {}
    for name in first:
        seeds = sorted(first[name].keys() & second.get(name, {}).keys())
        if not seeds:
            continue
        a, b = ([losses[name][seed] for seed in seeds] for losses in (first, second))
        finite = [value for value in a if math.isfinite(value)]
        both = [abs(x - y) for x, y in zip(a, b, strict=True) if math.isfinite(x - y)]
        rows[name] = {
            "seeds": seeds,
            "losses": (a, b),
            "difference": max(both, default=math.nan),
            "spread": max(finite) - min(finite) if len(finite) > 1 else math.nan,
            "same_divergence": [math.isnan(x) for x in a] == [math.isnan(y) for y in b],
        }
    return rows


def within(difference, spread):
    """Whether a difference is one that another seed makes; "-" where too few seeds ended well to say."""
    if math.isnan(difference) or math.isnan(spread):
        return "-"
    return "yes" if difference <= spread else "no"


def markdown(rows, runs):
    """The table, with what was measured. ``runs``: of the first folder."""
    settings, where = runs[0].settings, runs[0].environment
    header = ["run", "seeds", "float32", "bfloat16", "largest difference", "spread of float32", "within", "same divergence"]
    cells = [
        [
            name,
            ", ".join(map(str, row["seeds"])),
            *(", ".join("diverged" if math.isnan(value) else f"{value:.3f}" for value in of) for of in row["losses"]),
            *("-" if math.isnan(row[name]) else f"{row[name]:.3f}" for name in ("difference", "spread")),
            within(row["difference"], row["spread"]),
            "yes" if row["same_divergence"] else "NO",
        ]
        for name, row in rows.items()
    ]
    about = (
        f"Made by `benchmarks/dtype_agreement.py`. {settings['data']}, {pairs_text([settings])}, preset {settings['preset']}, "
        f"{max(run.updates for run in runs)} updates; commit {(commit(where) or 'unknown')[:12]}, "
        f"{where.get('device', 'unknown device')}. Validation loss in base 2 with label smoothing, of each seed in turn."
    )
    return f"# float32 against bfloat16 products\n\n{about}\n\n{results_file.table(header, cells)}\n"


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("float32", metavar="FLOAT32_RUNS", help="folder of a study's runs")
    parser.add_argument("bfloat16", metavar="BFLOAT16_RUNS", help="the same runs in bfloat16")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the table besides")
    args = parser.parse_args()
    try:
        studies = {dtype: read_study(getattr(args, dtype)) for dtype in ("float32", "bfloat16")}
    except RunFolderError as error:
        raise results_file.failure(str(error)) from None
    for dtype, runs in studies.items():
        others = [run.folder for run in runs if run.settings["compute_dtype"] != dtype]
        if others:
            raise results_file.failure(f"{others[0]} was not trained with {dtype} products; give the folders in that order")
    rows = compared(*map(losses, studies.values()))
    if not rows:
        raise results_file.failure(f"{args.float32} and {args.bfloat16} share no run and seed; train the same in both")
    text = markdown(rows, studies["float32"])
    if args.out:
        try:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            results_file.write(args.out, text)
        except OSError as error:
            raise results_file.failure(f"cannot write {args.out} ({error.strerror}); give another --out") from None
    print(text, end="")


if __name__ == "__main__":
    main()
