#!/usr/bin/env bash
# Figures 2, 4 and 6 of the paper: Pre-LN and Post-LN, with and without warm-up, on IWSLT14 De-En.
#
#   IWSLT14=~/Downloads/de-en.tgz PRESET=cpu bash recipes/iwslt14.sh
#   IWSLT14=iwslt14.tokenized.de-en bash recipes/iwslt14.sh --figure 2 --only iwslt14-post-adam-lr5e-4-warmup1 --seeds "1 2 3"
#
# Stages: 1=prepare  the corpus: tokenized, BPE, binarized
#         2=train    the figure's rows of recipes/runs.tsv, settings of appendix A.1
#         3=score    every epoch's checkpoint on 500 valid sentences, the last and the best on the test set
#         4=report   RESULTS.md, results.tsv, figures
# Flags: --figure 2, 4 (default), 6 or all; --stage N, --stop-stage N (number or name); --only RUN (may be given several times);
#        --seeds "1 2 3"; --dry-run; --help
# Settings: IWSLT14=PATH (archive or folder: the original de-en.tgz, the output of fairseq's prepare-iwslt14.sh, or
#           train/valid/test.{de,en} with code and dictionaries) or an address to download it from; needed until data/iwslt14 is there;
#           PRESET=paper (default: as printed), cpu (smaller model, warm-up scaled) or smoke (400 pairs, to try the machinery);
#           DATA, RUNS: folders; all others are at the top of recipes/common.sh
# Writes: runs/iwslt14-<preset>/RESULTS.md, results.tsv and figures, and <run>/seed<k>/ with logs, scores, checkpoints
# Time:   a run of PRESET=paper takes hours on a GPU and about 9 GB of checkpoints; cpu hours on 2 cores; smoke minutes
# Expect: recipes/runs.tsv has the paper's BLEU: about 34 for Post-LN with warm-up and for Pre-LN without, 8.45 at best for Post-LN
#         without
set -euo pipefail
case ${IWSLT14:-} in '' | /* | *://*) ;; *) IWSLT14=$PWD/$IWSLT14 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=recipes/common.sh
. recipes/common.sh

STUDY=iwslt14
STAGES=(prepare train score report)
PRESET=${PRESET:-paper}
FIGURE=4
start "$@"
CORPUS=$DATA/iwslt14
RUNS=${RUNS:-runs/iwslt14-$PRESET}
source=()
case ${IWSLT14:-} in
  '')
    [[ -f $CORPUS/corpus.json || $DRY_RUN || $FIRST_STAGE -gt 1 ]] ||
      die "IWSLT14 is not set; give the corpus as IWSLT14=PATH, an archive or a folder, or IWSLT14=ADDRESS to download it" \
        "(fairseq's prepare-iwslt14.sh has http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz)"
    ;;
  *://*) source=(--download "$IWSLT14") ;;
  *) [[ -e $IWSLT14 ]] || die "IWSLT14=$IWSLT14 does not exist; give an archive or a folder" && source=(--from "$IWSLT14") ;;
esac
enter_environment

if stage 1; then
  if ((${#source[@]})) || [[ $DRY_RUN ]]; then
    do_or_show python recipes/corpora/iwslt14.py --out "$CORPUS" "${source[@]:-IWSLT14}" ||
      die "the corpus could not be made from ${IWSLT14:-}; see above"
  fi
  binarize
fi
((LAST_STAGE == 1)) || use_corpus
if stage 2; then each_run train; fi
if stage 3; then each_run score; fi
if stage 4; then report; fi
finish
