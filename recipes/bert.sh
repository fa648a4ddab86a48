#!/usr/bin/env bash
# Figure 5 of the paper: BERT with Post-LN and with Pre-LN, from masked-LM pre-training to fine-tuning on MRPC and RTE.
#
#   TEXT=wikitext-2.tar.gz GLUE=glue.tar.gz PRESET=cpu bash recipes/bert.sh
#   TEXT=~/wikipedia GLUE=~/glue_data bash recipes/bert.sh --only bert-pre-adam-lr3e-4-linear --stop-stage pretrain
#
# Stages: 1=prepare   documents, a subword vocabulary learned on them, 199:1 train and valid; MRPC and RTE in these subwords
#         2=pretrain  the rows of study bert in recipes/runs.tsv; a checkpoint and a validation at fixed numbers of updates
#         3=finetune  several checkpoints on MRPC and RTE: every batch size, rate, number of epochs and seed of recipes/masked_lm.tsv
#         4=report    RESULTS.md, results.tsv, finetunings.tsv, figures
# Flags: --stage N, --stop-stage N (number or name); --only RUN (may be given several times); --seeds "1 2 3" (of the pre-training);
#        --dry-run; --help
# Settings: TEXT=PATH (a text file with a blank line between documents, a folder of them, WikiText, an archive; default: LibreOffice's
#           English help, a Debian or Ubuntu package); GLUE=PATH (folder or archive with MRPC/ and RTE/ in GLUE's tsv, for stage 3);
#           PRESET=paper (default: BERT base), cpu (6 layers, 128/512; 6,000 updates of 1,024 tokens) or smoke (to try the machinery);
#           FINETUNE_UPDATES, FINETUNE_BATCH_SIZES, FINETUNE_LRS, FINETUNE_EPOCHS, FINETUNE_SEEDS (lists such as "16 32", instead of
#           the preset's); DATA, RUNS: folders; all others are at the top of recipes/common.sh. LAUNCH is for the pre-training.
# Writes: runs/bert-<preset>/RESULTS.md, results.tsv, finetunings.tsv, figures; <run>/seed<k>/: logs, checkpoints, finetune/
# Time:   cpu: on one CPU core 19 minutes a pre-training, and 2 a fine-tuning, of which there are 32; paper: days on 8 GPUs, 60 GB a run
# Expect: the paper: Pre-LN without warm-up has Post-LN's loss of 700k updates after 500k, and is ahead on MRPC and RTE on the way;
#         Post-LN at Pre-LN's rate diverges. Ours at CPU size: results/bert-cpu
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=recipes/common.sh
. recipes/common.sh
# shellcheck source=recipes/masked_lm.sh
. recipes/masked_lm.sh

STUDY=bert
STAGES=(prepare pretrain finetune report)
PRESET=${PRESET:-paper}
start "$@"
masked_lm_settings
RUNS=${RUNS:-runs/bert-$PRESET}
CORPUS=$DATA/masked-lm-$PRESET BIN=$DATA/masked-lm-$PRESET-bin TASKS_FOLDER=$DATA/glue-$PRESET
text=()
[[ -z ${TEXT:-} ]] || { [[ -e $TEXT ]] || die "TEXT=$TEXT does not exist; give a text file, a folder or an archive"; }
[[ -z ${TEXT:-} ]] || text=(--from "$TEXT")
if [[ -n ${GLUE:-} ]]; then
  [[ -e $GLUE ]] || die "GLUE=$GLUE does not exist; give a folder or an archive with MRPC and RTE"
elif between 3 3 && [[ ! $DRY_RUN && ! -f $TASKS_FOLDER/corpus.json ]]; then
  die "GLUE is not set; give GLUE=PATH, a folder or an archive with MRPC/ and RTE/, or stop before fine-tuning: --stop-stage pretrain"
fi
[[ ! $DRY_RUN ]] || GLUE=${GLUE:-GLUE}
# shellcheck disable=SC2034  # read by environment.sh
ENVIRONMENT_NEEDS=sentencepiece
enter_environment

if stage 1; then
  if ((${#text[@]})) || [[ $DRY_RUN || ! -f $CORPUS/corpus.json ]]; then
    do_or_show python recipes/corpora/masked_lm_text.py --out "$CORPUS" ${text[@]+"${text[@]}"} \
      --vocabulary "${LENGTHS[vocabulary]}" --max-subwords $((TOKENS_PER_SAMPLE - 2)) ||
      die "the text could not be made; see above, and give your own with TEXT=PATH"
  fi
  binarize_text
fi
if between 1 3; then use_text; fi
# not in a stage: GLUE may be given only when fine-tuning starts
if between 1 3 && [[ -n ${GLUE:-} ]]; then make_tasks; fi
if stage 2; then each_run train; fi
if stage 3; then
  use_tasks
  log "every checkpoint is fine-tuned on ${TASKS[*]} with $GRID"
  each_run finetune
fi
if stage 4; then report; fi
finish
