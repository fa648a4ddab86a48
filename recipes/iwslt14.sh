#!/usr/bin/env bash
# Figures 2, 4 and 6 of the paper: Pre-LN and Post-LN, with and without warm-up, on IWSLT14 De-En.
#
#   IWSLT14=~/Downloads/de-en.tgz PRESET=cpu bash recipes/iwslt14.sh
#   IWSLT14=iwslt14.tokenized.de-en bash recipes/iwslt14.sh --figure 2 --only iwslt14-post-adam-lr5e-4-warmup1 --seeds "1 2 3"
#
# Stages: 1=prepare  the corpus: tokenized, BPE, binarized
#         2=train    the figure's rows of recipes/runs.tsv, settings of appendix A.1
#         3=score    epochs' checkpoints on 500 valid sentences, the last and the best on the test set
#         4=report   RESULTS.md, results.tsv, figures
# Flags: --figure 2, 4 (default), 6, several (2,4) or all; --setting paper (default), or fairseq: its own recipe (dropout 0.3, weight decay 1e-4),
#        both positions; --stage N, --stop-stage N (number or name); --only RUN (may be given several times);
#        --seeds "1 2 3"; --dry-run; --help
# Settings: IWSLT14=PATH (archive or folder: the original de-en.tgz, the output of fairseq's prepare-iwslt14.sh, or
#           train/valid/test.{de,en} with code and dictionaries) or an address to download it from; needed until data/iwslt14 is there;
#           PRESET=paper (default: as printed), papersize (the same with 5 epochs, warm-up scaled), cpu (smaller model, part of the
#           pairs, warm-up scaled) or smoke (400 pairs, to try the machinery);
#           DATA, RUNS: folders; all others are at the top of recipes/common.sh
# Writes: runs/iwslt14-<preset>/RESULTS.md, results.tsv and figures, and <run>/seed<k>/ with logs, scores, checkpoints
# Time:   a run of PRESET=paper makes about 9 GB of checkpoints; cpu about 30 minutes a run on one
#         core; smoke minutes
# Expect: recipes/runs.tsv has the paper's BLEU: about 34 for Post-LN with warm-up and for Pre-LN without, 8.45 at best for Post-LN
#         without; --setting fairseq: 34.5 to 35 on the whole data, which is fairseq's number and not the paper's
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=recipes/common.sh
. recipes/common.sh

STUDY=iwslt14
STAGES=(prepare train score report)
PRESET=${PRESET:-paper}
FIGURE=4
FLAGS=([setting]=paper)
read_arguments "$@"
case ${FLAGS[setting]} in
  paper) ;;
  fairseq) # as examples/translation/README.md of fairseq has it; its length penalty is fairseq-generate's default
    [[ " $* " != *' --figure '* ]] || die "--setting fairseq is in no figure of the paper; leave --figure out"
    STUDY=iwslt14-fairseq PRESETS=iwslt14 FIGURE='' DROPOUT=0.3 WEIGHT_DECAY=0.0001 SHARED_EMBEDDINGS=decoder LENPEN=1
    ;;
  *) die "unknown --setting '${FLAGS[setting]}'; choose from paper, fairseq" ;;
esac
check_settings
CORPUS=$DATA/iwslt14
RUNS=${RUNS:-runs/$STUDY-$PRESET}
find_source IWSLT14 "fairseq's prepare-iwslt14.sh has http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz"
enter_environment

if stage 1; then make_corpus iwslt14.py; fi
if between 2 3; then use_corpus; fi
if stage 2; then each_run train; fi
if stage 3; then each_run score; fi
if stage 4; then report; fi
finish
