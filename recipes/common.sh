# shellcheck shell=bash
# The engine of the recipes: settings, stages, training, decoding and scoring of the runs in runs.tsv. Sourced, never run.
#
# A recipe sets STUDY and STAGES, calls `start "$@"` (or its two halves, with settings between them), and then asks `if stage 1; then
# ...` for each of its stages.
# Run folders are runs/<study>[-<preset>]/<run>/seed<k>/; what they hold is the contract of the recipes with `fairseq-ln report`.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "the recipes need bash 4.4 or later, and this is $BASH_VERSION" >&2
  exit 1
fi

# -- Appendix A.1 of the paper, IWSLT14: what no run and no preset changes. A recipe of another setting says what differs. --
# The fused ones are fairseq's own adam and label_smoothed_cross_entropy in faster code, equal to rounding.
CRITERION=fused_label_smoothed_cross_entropy
declare -A OPTIMIZERS=(
  [adam]="--optimizer fused_adam --adam-betas (0.9,0.98)"
  [radam]="--optimizer radam --adam-betas (0.9,0.98)"
  [sgd]="--optimizer sgd --momentum 0.0"
)
WEIGHT_DECAY=0.0
DROPOUT=0.1
LABEL_SMOOTHING=0.1
POSITIONS=1024                                                  # fairseq's --max-source-positions and --max-target-positions
SHARED_EMBEDDINGS=                                              # decoder (input and output), or all (with one joined dictionary)
WEIGHT_INIT=xavier_uniform                                      # of the paper's time; see fairseq_lnplugin/weight_init.py
BEAM=5 LENPEN=1.2
# The longest translation, 1.2 x source + 10 subwords, is that of fairseq's own IWSLT14 example: a model that has not learned to end
# a sentence would run to 200 for each, and decoding it would take hours.
DECODING=(--max-len-a 1.2 --max-len-b 10 --remove-bpe --max-tokens 4096)
EVERY_SENTENCE=(--required-batch-size-multiple 1)               # fairseq drops the last batch otherwise, in silence
SCORING=()                                                      # further flags of fairseq-ln score
SRC=de TGT=en                                                   # what a dry run takes; else corpus.json says it

# -- Settings from outside --
# MAX_EPOCH (another bound on the epochs than the preset's), MAX_UPDATE (a bound on the updates), COMPUTE_DTYPE (float32, bfloat16,
# or auto: what is faster here; default: the preset's), SEEDS ("1 2 3"), JOBS (runs trained at a time, each with its share of the
# cores, or a GPU each; default 1), DATA (folder of the corpora; default data, in the repository), RUNS (folder of the study's runs).
# Relative paths are the caller's.
# LAUNCH (a prefix such as "torchrun --nproc_per_node 4", or for several machines one that starts processes on all of them, such as
# "srun --nodes 2 --ntasks-per-node 8") with WORKERS (how many processes that starts), and UPDATE_FREQ (micro-batches an update;
# default: as many as the preset's worker_tokens needs): an update keeps the preset's tokens, divided by WORKERS x UPDATE_FREQ.
# AVERAGE (N: also scores the average of the last N epochs' checkpoints on the test set).
SEEDS=${SEEDS:-1}
JOBS=${JOBS:-1}
LAUNCH=${LAUNCH:-}
WORKERS=${WORKERS:-}
UPDATE_FREQ=${UPDATE_FREQ:-}
AVERAGE=${AVERAGE:-}
MAX_EPOCH=${MAX_EPOCH:-}
MAX_UPDATE=${MAX_UPDATE:-}
COMPUTE_DTYPE=${COMPUTE_DTYPE:-}
# from_caller NAME...: relative paths in these settings are the caller's; recipes go to the repository root first.
CALLED_FROM=$OLDPWD
from_caller() {
  local name
  [[ $CALLED_FROM != "$PWD" ]] || return 0
  for name; do
    case ${!name:-} in '' | /* | *://*) ;; *) printf -v "$name" %s "$CALLED_FROM/${!name}" ;; esac
  done
}
from_caller DATA RUNS IWSLT14 WMT14 TEXT GLUE
DATA=${DATA:-data}

FIGURE=                   # recipes with figures set a default
PRESETS=                  # the study whose presets a recipe takes, if not its own
declare -A FLAGS=()       # a recipe's own flags --NAME, with their defaults
UNIT=epoch                # what LENGTH, the most that a run is trained, counts: epoch or update
RECIPE=$(basename "$0" .sh)
USER_DIR=fairseq_lnplugin # relative to the repository root, where recipes run
WORKED=                   # what this start did; empty: nothing to do
BPE=                      # folder of the parallel text in subwords, where there is one
RUNS_TO_COME=0            # after the one that is being trained
GPUS=0                    # until the environment says how many there are
# the cores of this start; an OMP_NUM_THREADS of the caller's bounds them, and the ones that are set later must not
CORES=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)

log() { printf '%s %s: %s\n' "$(date +%H:%M:%S)" "$RECIPE" "$*" >&2; }

die() {
  printf '%s: %s\n' "$RECIPE" "$*" >&2
  exit 1
}

# need PROGRAM WHY
need() { command -v "$1" >/dev/null || die "$1 is missing: $2"; }

# any_python ARGUMENT...: Python, for what needs no more than its own library. A dry run makes no environment, and has what is there.
any_python() {
  local program
  for program in .venv/bin/python python3 python; do
    if command -v "$program" >/dev/null; then
      "$program" "$@"
      return
    fi
  done
  die "there is no python3: install it"
}

is_count() { [[ $1 =~ ^[1-9][0-9]*$ ]]; }

# faster_dtype: the faster type of products here. bfloat16 products take twice the time of float32 on CPUs without Intel's AMX; GPUs
# have them from compute capability 8.0 on.
faster_dtype() {
  if nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
    awk 'NR == 1 || $1 < least { least = $1 } END { exit !(least + 0 >= 8) }' || grep -qw amx_bf16 /proc/cpuinfo 2>/dev/null; then
    echo bfloat16
  else
    echo float32
  fi
}

# threads N: how many threads the programs started from here on use.
threads() { export OMP_NUM_THREADS=$1 MKL_NUM_THREADS=$1; }

sha256() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi | cut -d ' ' -f 1; }

# write FILE: standard input to FILE, whole or not at all, even where two starts write it.
write() {
  local new=$1.$BASHPID.new
  cat >"$new" && mv "$new" "$1"
}

quoted() { printf '%q ' "$@" | sed 's/ $/\n/'; }

# -- Reading the tables --

# read_row ARRAY FILE COLUMN=VALUE...: the first row with these values, into an associative array; status 1 if there is none.
read_row() {
  local -n into=$1
  local file=$2 line condition i names=() cells=()
  shift 2
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line%$'\r'}
    [[ -z $line || $line == '#'* ]] && continue
    IFS=$'\t' read -r -a cells <<<"$line"
    if ((${#names[@]} == 0)); then
      names=("${cells[@]}")
      continue
    fi
    ((${#cells[@]} == ${#names[@]})) ||
      die "$file has ${#cells[@]} cells in the row '${line:0:60}' and ${#names[@]} columns; one tab between two, '-' is empty"
    for i in "${!names[@]}"; do into[${names[i]}]=${cells[i]#-}; done
    for condition; do [[ ${into[${condition%%=*}]} == "${condition#*=}" ]] || continue 2; done
    return 0
  done <"$file"
  return 1
}

# column FILE STUDY NAME [FIGURES]: the cells of a column in the study's rows (of any of the figures, as in "2 4"), a line each.
column() {
  awk -F '\t' -v study="$2" -v name="$3" -v figures="${4:-}" '
    BEGIN { count = split(figures, figure, " ") }
    { sub(/\r$/, "") }
    /^#/ || /^$/ { next }
    !header { for (i = 1; i <= NF; i++) at[$i] = i; header = 1; next }
    $at["study"] == study {
      wanted = count == 0
      for (i = 1; i <= count; i++) if (index("," $at["figure"] ",", "," figure[i] ",")) wanted = 1
      if (wanted) print $at[name]
    }' "$1"
}

listed() { paste -sd ' ' - | sed 's/ /, /g'; }

# -- The command line --

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

stage_number() {
  local i
  for i in "${!STAGES[@]}"; do
    if [[ $1 == "$((i + 1))" || $1 == "${STAGES[i]}" ]]; then echo $((i + 1)) && return; fi
  done
  die "there is no stage '$1'; choose from $(for i in "${!STAGES[@]}"; do echo "$((i + 1))=${STAGES[i]}"; done | listed)"
}

# start ARGUMENT...: reads the command line, checks every setting before any work, and sets what the stages use.
start() {
  read_arguments "$@"
  check_settings
}

read_arguments() {
  local option
  ONLY=()
  FIRST_STAGE=1 LAST_STAGE=${#STAGES[@]} DRY_RUN=
  while (($#)); do
    option=$1
    case $option in
      --help | -h) usage && exit 0 ;;
      --dry-run) DRY_RUN=yes && shift && continue ;;
      --stage | --stop-stage | --only | --seeds) ;;
      --figure) [[ -n ${FIGURE:-} ]] || die "$RECIPE.sh has no flag --figure; see --help" ;;
      *)
        [[ $option =~ ^--[a-z]+$ && ${FLAGS[${option#--}]+known} ]] ||
          die "unknown argument '$option'; see bash recipes/$RECIPE.sh --help"
        ;;
    esac
    [[ ${2:-} ]] || die "$option needs a value; see bash recipes/$RECIPE.sh --help"
    case $option in
      --stage) FIRST_STAGE=$(stage_number "$2") || exit 1 ;;
      --stop-stage) LAST_STAGE=$(stage_number "$2") || exit 1 ;;
      --only) ONLY+=("$2") ;;
      --figure) FIGURE=$2 ;;
      --seeds) SEEDS=$2 ;;
      *) FLAGS[${option#--}]=$2 ;;
    esac
    shift 2
  done
}

check_settings() {
  local all=() run seed figure figures=() wanted=()
  ((FIRST_STAGE <= LAST_STAGE)) || die "--stop-stage $LAST_STAGE lies before --stage $FIRST_STAGE"

  declare -gA PRESET_ROW=()
  PRESETS=${PRESETS:-$STUDY}
  read_row PRESET_ROW recipes/presets.tsv "study=$PRESETS" "preset=$PRESET" ||
    die "unknown preset '$PRESET'; choose PRESET from $(column recipes/presets.tsv "$PRESETS" preset | listed)"
  if [[ -n ${FIGURE:-} && $FIGURE != all ]]; then
    mapfile -t figures < <(column recipes/runs.tsv "$STUDY" figure | tr ',' '\n' | sort -u)
    read -r -a wanted <<<"${FIGURE//,/ }"
    ((${#wanted[@]})) || die "--figure is empty; choose from $(printf '%s\n' "${figures[@]}" | listed), all"
    for figure in "${wanted[@]}"; do
      [[ " ${figures[*]} " == *" $figure "* ]] ||
        die "there is no figure '$figure'; choose from $(printf '%s\n' "${figures[@]}" | listed), all, or several with commas"
    done
    mapfile -t all < <(column recipes/runs.tsv "$STUDY" run "${wanted[*]}")
  else
    mapfile -t all < <(column recipes/runs.tsv "$STUDY" run)
  fi
  for run in ${ONLY[@]+"${ONLY[@]}"}; do
    column recipes/runs.tsv "$STUDY" run | grep -Fxq -- "$run" ||
      die "there is no run '$run'; choose --only from $(column recipes/runs.tsv "$STUDY" run | listed)"
  done
  RUN_NAMES=("${all[@]}")
  ((${#ONLY[@]} == 0)) || RUN_NAMES=("${ONLY[@]}")
  read -r -a SEED_LIST <<<"$SEEDS"
  ((${#SEED_LIST[@]})) || die "SEEDS is empty; give one seed or several, such as SEEDS='1 2 3'"
  for seed in "${SEED_LIST[@]}"; do is_count "$seed" || die "SEEDS holds '$seed'; give whole numbers from 1 on"; done

  DTYPE_IS_FREE='' SHARES_ARE_FREE='' # nobody says what they are to be
  [[ ${COMPUTE_DTYPE:-auto} != auto ]] || DTYPE_IS_FREE=yes
  [[ $WORKERS$UPDATE_FREQ ]] || SHARES_ARE_FREE=yes
  [[ -n $LAUNCH && -z $WORKERS ]] && die "LAUNCH needs WORKERS, the number of processes that it starts"
  WORKERS=${WORKERS:-1}
  is_count "$WORKERS" || die "WORKERS must be a whole number from 1 on, but is '$WORKERS'"
  [[ -z $UPDATE_FREQ ]] || is_count "$UPDATE_FREQ" || die "UPDATE_FREQ must be a whole number from 1 on, but is '$UPDATE_FREQ'"
  [[ -z $AVERAGE ]] || is_count "$AVERAGE" || die "AVERAGE must be a whole number from 1 on, but is '$AVERAGE'"
  is_count "$JOBS" || die "JOBS must be a whole number from 1 on, but is '$JOBS'"
  [[ -z $MAX_EPOCH ]] || is_count "$MAX_EPOCH" || die "MAX_EPOCH must be a whole number from 1 on, but is '$MAX_EPOCH'"
  [[ -z $MAX_UPDATE ]] || is_count "$MAX_UPDATE" || die "MAX_UPDATE must be a whole number from 1 on, but is '$MAX_UPDATE'"
  ((WORKERS == 1)) || [[ -n $LAUNCH ]] || die "WORKERS=$WORKERS needs LAUNCH, what starts them, such as LAUNCH='torchrun ...'"
  # without a port this fairseq takes a SLURM job for one machine; it is no setting of the run, and each job may have its own
  LAUNCH_FLAGS=()
  [[ $LAUNCH != srun* ]] || LAUNCH_FLAGS=(--distributed-port $((10000 + ${SLURM_JOB_ID:-0} % 50000)))
  ((WORKERS == 1 || JOBS == 1)) || die "JOBS=$JOBS and WORKERS=$WORKERS: use several jobs or several workers, not both"
  COMPUTE_DTYPE=${COMPUTE_DTYPE:-${PRESET_ROW[compute_dtype]}}
  [[ $COMPUTE_DTYPE != auto ]] || COMPUTE_DTYPE=$(faster_dtype)
  [[ $COMPUTE_DTYPE == float32 || $COMPUTE_DTYPE == bfloat16 ]] ||
    die "COMPUTE_DTYPE must be float32, bfloat16 or auto, but is '$COMPUTE_DTYPE'"
  MAX_TOKENS=${PRESET_ROW[max_tokens]}
  DECODING=(--beam "$BEAM" --lenpen "$LENPEN" "${DECODING[@]}")
  share_tokens "${PRESET_ROW[worker_tokens]:-$MAX_TOKENS}"
  use_locale
}

# share_tokens AT_MOST: WORKER_TOKENS and UPDATE_FREQ, so that an update has MAX_TOKENS tokens over all WORKERS, and a worker no
# more than AT_MOST at a time; and BATCH, which tells what came out and whether it is what the paper has.
share_tokens() {
  local -A paper=()
  UPDATE_FREQ=${UPDATE_FREQ:-$(((MAX_TOKENS + WORKERS * $1 - 1) / (WORKERS * $1)))}
  WORKER_TOKENS=$((MAX_TOKENS / (WORKERS * UPDATE_FREQ)))
  ((WORKER_TOKENS > 0)) || die "$MAX_TOKENS tokens an update are too few for WORKERS=$WORKERS x UPDATE_FREQ=$UPDATE_FREQ"
  MAX_TOKENS=$((WORKER_TOKENS * WORKERS * UPDATE_FREQ))
  BATCH="$MAX_TOKENS tokens an update ($WORKERS x $WORKER_TOKENS x update-freq $UPDATE_FREQ)"
  read_row paper recipes/presets.tsv "study=$PRESETS" preset=paper || return 0
  ((MAX_TOKENS == paper[max_tokens])) || BATCH+=", not the paper's ${paper[max_tokens]}"
}

# Decimals have a point in every locale, for sort, awk and printf. Umlauts in POSIX locales: Python's output is UTF-8 in any case,
# the other programs' where the system can.
use_locale() {
  export PYTHONUTF8=1 PYTHONIOENCODING=utf-8
  if [[ ${LC_ALL:-} ]]; then export LC_CTYPE=$LC_ALL && unset LC_ALL; fi # it would win over the next
  export LC_NUMERIC=C
  [[ $(locale charmap 2>/dev/null) != UTF-8 ]] || return 0
  if locale -a 2>/dev/null | grep -iE '^c\.utf-?8$' >/dev/null; then export LC_CTYPE=C.UTF-8; fi
}

# stage N: whether stage N is to be done; says so.
stage() {
  (($1 >= FIRST_STAGE && $1 <= LAST_STAGE)) || return 1
  log "stage $1: ${STAGES[$1 - 1]}"
}

# shown_to FILE COMMAND...: prints a command whose output goes to FILE.
shown_to() { echo "$(quoted "${@:2}") >$(quoted "$1")"; }

# do_or_show COMMAND...: runs it, its output beside the recipe's log; with --dry-run prints it.
do_or_show() { if [[ $DRY_RUN ]]; then quoted "$@"; else "$@" >&2; fi; }

# between FIRST LAST: whether any of these stages is to be done.
between() { ((FIRST_STAGE <= $2 && LAST_STAGE >= $1)); }

# enter_environment: finds or makes the environment; a dry run does without.
enter_environment() {
  [[ $DRY_RUN ]] && return
  # shellcheck source=recipes/environment.sh
  . recipes/environment.sh
  threads "$CORES"
}

# check_environment ACTION: a second of BLEU and model code, before hours of training; sets GPUS.
check_environment() {
  local found
  found=$(python -c '
import fairseq_lnplugin, sacrebleu, torch
assert round(sacrebleu.corpus_bleu(["a b c d e"], [["a b c d e"]]).score) == 100
print(torch.cuda.device_count())' 2>&1) ||
    die "the environment of $(command -v python) does not work ($(tail -n 1 <<<"$found"));" \
      "delete .venv, or leave your environment, and start again"
  GPUS=$(tail -n 1 <<<"$found")
  # srun may start its processes on other machines than this one
  [[ $1 != train || $LAUNCH == srun* ]] || ((WORKERS == 1 || GPUS > 0)) ||
    die "WORKERS=$WORKERS needs GPUs, and torch sees none; fairseq trains with several on GPUs only"
}

# -- Corpus --

# CORPUS is the corpus folder, made by a script of recipes/corpora.

# find_source NAME HINT: SOURCE, the flags of the corpus script for the setting NAME: a path, or an address to download from.
find_source() {
  local value=${!1:-}
  SOURCE=() SOURCE_HINT="give $1=PATH, an archive or a folder"
  case $value in
    '')
      [[ -f $CORPUS/corpus.json || $DRY_RUN || $FIRST_STAGE -gt 1 ]] ||
        die "$1 is not set; give the corpus as $1=PATH, an archive or a folder, or $1=ADDRESS to download it ($2)"
      [[ ! $DRY_RUN ]] || SOURCE=(--from "$1")
      ;;
    *://*) SOURCE=(--download "$value") ;;
    *)
      [[ -e $value ]] || die "$1=$value does not exist; give an archive or a folder"
      SOURCE=(--from "$value")
      ;;
  esac
}

# make_corpus SCRIPT FLAG...: CORPUS by a script of recipes/corpora, then BIN.
make_corpus() {
  if ((${#SOURCE[@]})); then
    do_or_show python "recipes/corpora/$1" --out "$CORPUS" "${SOURCE[@]}" "${@:2}" ||
      die "$CORPUS could not be made from ${SOURCE[-1]}; see above, or $SOURCE_HINT"
  fi
  binarize
}

# corpus_facts: what the recipe needs to know of CORPUS/corpus.json.
corpus_facts() {
  local facts
  [[ -f $CORPUS/corpus.json ]] || die "$CORPUS has no corpus.json; start with stage 1"
  facts=$(any_python recipes/facts.py corpus "$CORPUS/corpus.json") || exit 1
  {
    read -r CORPUS_NAME
    read -r SRC
    read -r TGT
    read -r LOWERCASE || true # the last lines are not there where they are empty
    read -r CORPUS_NOTE || true
  } <<<"$facts"
}

# set_bin: BIN, the binarized folder of this preset, and TEXT, which it is made of: all of the corpus, or its first pairs.
set_bin() {
  local train=${PRESET_ROW[train_pairs]} heldout=${PRESET_ROW[heldout_pairs]}
  BIN=$CORPUS/bin${train:+-train$train}${heldout:+-heldout$heldout}
  TEXT=$CORPUS
  [[ ! $train$heldout ]] || TEXT=$BIN/text
}

# first_pairs FOLDER: as many of CORPUS' pairs as the preset takes, as text and in subwords.
first_pairs() {
  local split kind lang limit command
  do_or_show mkdir -p "$1/bpe"
  for split in train valid test valid500; do
    limit=${PRESET_ROW[heldout_pairs]}
    [[ $split != train ]] || limit=${PRESET_ROW[train_pairs]}
    for kind in '' bpe/; do
      for lang in "$SRC" "$TGT"; do
        command=(head -n "$limit" "$CORPUS/$kind$split.$lang")
        [[ $limit ]] || command=(cat "$CORPUS/$kind$split.$lang")
        if [[ $DRY_RUN ]]; then
          shown_to "$1/$kind$split.$lang" "${command[@]}"
        else
          "${command[@]}" >"$1/$kind$split.$lang"
        fi
      done
    done
  done
}

# is_binarized: whether BIN has been made of CORPUS, and says so; a BIN of anything else is refused.
is_binarized() {
  if [[ -f $BIN/corpus.sha256 && -f $CORPUS/corpus.json ]]; then # a dry run may find BIN alone
    [[ $(<"$BIN/corpus.sha256") == "$(sha256 "$CORPUS/corpus.json")" ]] ||
      die "$BIN was made from another corpus than $CORPUS is now; delete $BIN"
    log "$BIN is there"
    return 0
  fi
  [[ $DRY_RUN || ! -e $BIN ]] || die "$BIN exists and is not this recipe's work; move it away"
  return 1
}

# preprocess WORK ARGUMENT...: fairseq-preprocess, what it says in the folder WORK; a dry run shows it.
preprocess() {
  if [[ $DRY_RUN ]]; then
    quoted fairseq-preprocess "${@:2}"
    return
  fi
  need fairseq-preprocess "it comes with fairseq"
  fairseq-preprocess "${@:2}" </dev/null >"$1/output.log" 2>&1 ||
    die "fairseq-preprocess failed ($(tail -n 1 "$1/output.log")); see $1/output.log"
}

# binarize: CORPUS/bpe to BIN, with the dictionaries' sha256 beside them.
binarize() {
  local text=$CORPUS split lang lines other dictionaries=() work
  set_bin
  work=$BIN.partial
  [[ $DRY_RUN && ! -f $CORPUS/corpus.json ]] || corpus_facts
  if is_binarized; then return; fi
  if [[ $DRY_RUN ]]; then work=$BIN; else work_alone "$work"; fi
  if [[ $TEXT != "$CORPUS" ]]; then
    text=$work/text
    first_pairs "$text"
  fi
  if [[ ! $DRY_RUN ]]; then
    for split in train valid test valid500; do
      lines=$(wc -l <"$text/bpe/$split.$SRC") other=$(wc -l <"$text/bpe/$split.$TGT")
      ((lines > 0 && lines == other)) ||
        die "$text/bpe/$split has $lines lines of $SRC and $other of $TGT; delete $CORPUS and prepare it again"
    done
  fi
  if [[ -f $CORPUS/bpe/dict.$SRC.txt && -f $CORPUS/bpe/dict.$TGT.txt ]]; then
    dictionaries=(--srcdict "$CORPUS/bpe/dict.$SRC.txt" --tgtdict "$CORPUS/bpe/dict.$TGT.txt")
  elif [[ $SHARED_EMBEDDINGS == all ]]; then
    dictionaries=(--joined-dictionary)
  fi
  preprocess "$work" --source-lang "$SRC" --target-lang "$TGT" --trainpref "$text/bpe/train" --validpref "$text/bpe/valid" \
    --testpref "$text/bpe/test,$text/bpe/valid500" --destdir "$work" --workers "$CORES" ${dictionaries[@]+"${dictionaries[@]}"}
  [[ ! $DRY_RUN ]] || return 0
  for lang in "$SRC" "$TGT"; do
    [[ -s $work/dict.$lang.txt ]] || die "fairseq-preprocess wrote no dict.$lang.txt; see $work/output.log"
  done
  work_is_bin "$work"
}

# work_alone FOLDER: makes it, empty; no other start works there until this one has closed WORK_LOCK.
work_alone() {
  mkdir -p "$1"
  exec {WORK_LOCK}<"$1"
  if command -v flock >/dev/null; then
    flock -n "$WORK_LOCK" || die "$1 is being written by another process (perhaps of a killed start); wait for it, or end it"
  fi
  find "$1" -mindepth 1 -delete
}

# work_is_bin FOLDER: what was made there of CORPUS becomes BIN.
work_is_bin() {
  sha256 "$CORPUS/corpus.json" | write "$1/corpus.sha256"
  mv "$1" "$BIN"
  exec {WORK_LOCK}<&-
  log "wrote $BIN"
  WORKED=yes
}

dictionary_hashes() { sha256 "$1/dict.$SRC.txt" "$1/dict.$TGT.txt"; }

# use_corpus: for the stages after the first: what corpus.json and BIN say.
use_corpus() {
  set_bin
  if [[ $DRY_RUN && ! -d $BIN ]]; then
    LOWERCASE='' CORPUS_NAME='' PAIRS=''
    return
  fi
  corpus_facts
  [[ -f $BIN/dict.$SRC.txt && -f $BIN/dict.$TGT.txt ]] ||
    die "$BIN has no dictionaries dict.$SRC.txt and dict.$TGT.txt; start with stage 1"
  BPE=$TEXT/bpe
  PAIRS=$(($(wc -l <"$TEXT/train.$TGT")))
  [[ -z $CORPUS_NOTE ]] || log "$CORPUS_NAME: $CORPUS_NOTE"
}

# updates_per_epoch: by fairseq's own batching of the train text, kept in BIN.
updates_per_epoch() {
  local file=$BIN/batches-of-$WORKER_TOKENS-tokens batches
  if [[ ! -s $file ]]; then
    if [[ $DRY_RUN ]]; then
      echo 'UPDATES_PER_EPOCH' && return
    fi
    python recipes/batches.py "$BPE/train.$SRC" "$BPE/train.$TGT" "$WORKER_TOKENS" 2>"$file.log" | write "$file"
    [[ -s $file ]] || die "cannot count the updates of an epoch: $(tail -n 1 "$file.log")"
    rm -f "$file.log"
  fi
  batches=$(<"$file")
  echo $((((batches + WORKERS - 1) / WORKERS + UPDATE_FREQ - 1) / UPDATE_FREQ))
}

# check_lengths: the longest line of train and valid, with its end mark, fits into a worker's share, and that of valid and test into
# the model; fairseq would stop, in an epoch or when all is trained.
check_lengths() {
  local file=$BIN/longest-lines longest scored
  if [[ ! -s $file ]]; then
    awk '
      FNR == 1 { part = FILENAME; sub(".*/", "", part); sub("[.][^.]*$", "", part) }
      NF + 1 > most[part] { most[part] = NF + 1 }
      function larger(a, b) { return a + 0 > b + 0 ? a : b }
      END { print larger(most["train"], most["valid"]), larger(most["valid"], most["test"]) }
    ' "$BPE/"{train,valid,test}".$SRC" "$BPE/"{train,valid,test}".$TGT" | write "$file"
  fi
  read -r longest scored <"$file"
  ((scored <= POSITIONS)) ||
    die "a line of valid or test in $BPE has $scored subwords with its end mark, and the model has $POSITIONS positions;" \
      "take it out, or cut it, in the text that was given"
  ((longest <= WORKER_TOKENS)) ||
    die "a line of $BPE has $longest subwords with its end mark, and a worker's share of an update is $WORKER_TOKENS tokens" \
      "(WORKERS=$WORKERS, UPDATE_FREQ=$UPDATE_FREQ); use fewer workers, a smaller UPDATE_FREQ or a larger preset"
}

# -- One run --

# scaled_warmup UPDATES [EPOCHS WHOLE]: as the preset says, for as much of its WHOLE epochs as a run has; where it says nothing, in
# proportion to this run's updates, of which the paper's IWSLT14 runs have about 17,000.
scaled_warmup() {
  local scale=${PRESET_ROW[warmup_scale]} updates part=${2:-1} whole=${3:-1}
  if [[ -z $scale ]]; then
    updates=$(updates_per_epoch) || exit 1
    [[ $updates == [0-9]* ]] || { echo "$1*$updates*$LENGTH/17000" && return; }
    updates=$((updates * LENGTH)) scale=1 whole=17000
    part=$((updates < whole ? updates : whole))
  fi
  awk -v n="$1" -v scale="$scale" -v part="$part" -v whole="$whole" '
    BEGIN { n = int(n * scale * part / whole + 0.5); print n < 2 ? 2 : n }'
}

# preset_sizes STACK...: SIZES, the flags of the widths that the preset gives each stack in place of the arch's, and ARCH, which
# tells both.
preset_sizes() {
  local stack width=${PRESET_ROW[embed_dim]} ffn_width=${PRESET_ROW[ffn_embed_dim]}
  SIZES=() ARCH=${PRESET_ROW[arch]}
  [[ -z $width$ffn_width ]] || ARCH+=" at ${width:-its width}/${ffn_width:-its FFN width}"
  for stack; do
    [[ -z $width ]] || SIZES+=("--$stack-embed-dim" "$width")
    [[ -z $ffn_width ]] || SIZES+=("--$stack-ffn-embed-dim" "$ffn_width")
  done
}

# describe RUN SEED: sets RUN_FOLDER, the arguments TRAIN of fairseq-train, and SETTINGS (name, tab, value).
describe() {
  local run=$1 seed=$2 whole epochs warmup hold decay=() updates
  declare -gA ROW=()
  read_row ROW recipes/runs.tsv "study=$STUDY" "run=$run" || die "there is no run '$run' in recipes/runs.tsv"
  [[ -n ${OPTIMIZERS[${ROW[optimizer]}]:-} ]] || die "recipes/runs.tsv: unknown optimizer '${ROW[optimizer]}' of $run"
  RUN_FOLDER=$RUNS/$run/seed$seed
  whole=${PRESET_ROW[max_epoch]:-${ROW[epochs]}}
  whole=$((whole < ROW[epochs] ? whole : ROW[epochs]))
  epochs=$((${MAX_EPOCH:-$whole} < ROW[epochs] ? ${MAX_EPOCH:-$whole} : ROW[epochs]))
  LENGTH=$epochs
  [[ -z $AVERAGE ]] || ((AVERAGE <= epochs)) || die "AVERAGE=$AVERAGE: $run has only $epochs epochs to average"

  warmup=${ROW[warmup_updates]} hold=${ROW[hold_epochs]}
  # a warm-up of 1 is "none" at any length
  if [[ -n $warmup ]] && ((warmup > 1)); then
    warmup=$(scaled_warmup "$warmup" "$epochs" "$whole") || exit 1
  fi
  # the hold keeps its share of the run, at least one epoch
  if [[ -n $hold ]]; then hold=$(((2 * hold * epochs + ROW[epochs]) / (2 * ROW[epochs]))) && hold=$((hold > 0 ? hold : 1)); fi
  case ${ROW[schedule]} in
    warmup_inverse_sqrt) decay=(--warmup-updates "$warmup") ;;
    no_warmup)
      decay=(--decay "${ROW[decay]}" ${hold:+--hold-epochs "$hold"} ${ROW[decay_factor]:+--decay-factor "${ROW[decay_factor]}"})
      if [[ ${ROW[decay]} == linear ]]; then
        updates=$(updates_per_epoch) || exit 1
        if [[ $updates == [0-9]* ]]; then updates=$((updates * epochs)); else updates="$updates*$epochs"; fi
        decay+=(--total-updates "$updates")
      fi
      ;;
    *) die "recipes/runs.tsv: unknown schedule '${ROW[schedule]}' of $run" ;;
  esac
  preset_sizes encoder decoder
  case $SHARED_EMBEDDINGS in
    decoder) SIZES+=(--share-decoder-input-output-embed) ;;
    all) SIZES+=(--share-all-embeddings) ;;
  esac
  local optimizer
  read -r -a optimizer <<<"${OPTIMIZERS[${ROW[optimizer]}]}"
  TRAIN=("$BIN" --user-dir "$USER_DIR" --task translation --source-lang "$SRC" --target-lang "$TGT"
    --arch "${PRESET_ROW[arch]}" ${SIZES[@]+"${SIZES[@]}"} --ln-position "${ROW[ln_position]}" --weight-init "$WEIGHT_INIT"
    --compute-dtype "$COMPUTE_DTYPE" --dropout "$DROPOUT" --criterion "$CRITERION" --label-smoothing "$LABEL_SMOOTHING"
    "${optimizer[@]}" --weight-decay "$WEIGHT_DECAY" --clip-norm 0.0
    --lr "${ROW[lr]}" --lr-scheduler "${ROW[schedule]}" "${decay[@]}"
    --max-tokens "$WORKER_TOKENS" --update-freq "$UPDATE_FREQ" --distributed-world-size "$WORKERS" "${EVERY_SENTENCE[@]}"
    --max-epoch "$epochs" ${MAX_UPDATE:+--max-update "$MAX_UPDATE"} --seed "$seed" --save-dir "$RUN_FOLDER/checkpoints"
    --grad-norm-interval "${PRESET_ROW[grad_norm_interval]}" --log-format json --log-interval "${PRESET_ROW[log_interval]}")
  SETTINGS=$(
    printf '%s\t%s\n' study "$STUDY" run "$run" figure "${ROW[figure]}" data "$CORPUS_NAME" pairs "$PAIRS" preset "$PRESET" \
      arch "$ARCH" ln_position "${ROW[ln_position]}" weight_init "$WEIGHT_INIT" compute_dtype "$COMPUTE_DTYPE" \
      optimizer "${ROW[optimizer]}" lr "${ROW[lr]}" schedule "${ROW[schedule]}" warmup_updates "$warmup" hold_epochs "$hold" \
      decay "${ROW[decay]}" decay_factor "${ROW[decay_factor]}" dropout "$DROPOUT" label_smoothing "$LABEL_SMOOTHING" \
      weight_decay "$WEIGHT_DECAY" shared_embeddings "$SHARED_EMBEDDINGS" decoding "${DECODING[*]}" batch "$BATCH" \
      max_tokens "$MAX_TOKENS" update_freq "$UPDATE_FREQ" max_epoch "$epochs" max_update "$MAX_UPDATE" seed "$seed" \
      paper_bleu "${ROW[paper_bleu]}" note "${ROW[note]}"
  )
}

# claim: sets up RUN_FOLDER, or checks that it was made with the same command.
claim() {
  local command there now
  command=$(quoted fairseq-train "${TRAIN[@]}")
  if [[ -f $RUN_FOLDER/command.txt ]]; then
    there=$(<"$RUN_FOLDER/command.txt") now=$command
    # what is trained may have been trained on another machine
    if is_trained "$RUN_FOLDER"; then
      now=$(any_machine "$now") && there=$(near_lengths "$(any_machine "$there")" "$now")
    fi
    need_same_settings "$RUN_FOLDER" "$there" "$now" "train it again, or set RUNS to another folder"
    check_data
    return
  fi
  mkdir -p "$RUN_FOLDER/checkpoints"
  printf '%s\n' "$SETTINGS" | write "$RUN_FOLDER/settings.tsv"
  fairseq-ln environment | write "$RUN_FOLDER/environment.json" || die "fairseq-ln environment failed"
  dictionary_hashes "$BIN" | write "$RUN_FOLDER/dictionaries.sha256"
  printf '%s\n' "$command" | write "$RUN_FOLDER/command.txt"
}

# need_same_settings FOLDER THERE NOW WHY: the command with which FOLDER was made is today's, or it is to be deleted to ...
need_same_settings() {
  local there now settings=()
  there=$(placeless "$2") now=$(placeless "$3")
  [[ $there != "$now" ]] || return 0
  there=$(only_in "$there" "$now") now=$(only_in "$now" "$(placeless "$2")")
  [[ ! $there =~ --compute-dtype\ ([a-z0-9]+) ]] || settings+=("COMPUTE_DTYPE=${BASH_REMATCH[1]}")
  [[ ! $there =~ --update-freq\ ([0-9]+) ]] || settings+=("UPDATE_FREQ=${BASH_REMATCH[1]}")
  [[ ! $there =~ --distributed-world-size\ ([0-9]+) ]] || settings+=("WORKERS=${BASH_REMATCH[1]}")
  die "$1 was made with other settings (there: $there; now: $now);" ${settings[0]+"set ${settings[*]} to go on, or"} \
    "delete $1 to $4"
}

# placeless COMMAND: without the places that change when a study's folder is copied elsewhere: its own and that of the data.
placeless() {
  sed -E 's@ --save-dir ([^\\ ]|\\.)+@@; s@^(fairseq-train )(([^\\ ]|\\.)*/)?@\1@; s@( --restore-file )(([^\\ ]|\\.)*/)?@\1@' <<<"$1"
}

# any_machine COMMAND: without what the machine decides where no setting does: the type of the products, and how the tokens of an
# update are shared out.
any_machine() {
  local command=$1 flag tokens=1
  [[ ! $DTYPE_IS_FREE ]] || command=$(sed 's/ --compute-dtype [a-z0-9]*//' <<<"$command")
  if [[ $SHARES_ARE_FREE ]]; then
    for flag in max-tokens update-freq distributed-world-size; do
      [[ $command =~ \ --$flag\ ([0-9]+) ]] || continue
      tokens=$((tokens * BASH_REMATCH[1])) command=${command/"${BASH_REMATCH[0]}"/}
    done
    command+=" --max-tokens $tokens"
  fi
  echo "$command"
}

# near_lengths THERE NOW: THERE with the tokens of an update and the lengths in updates of NOW, where they differ by at most 5 %: they
# follow from how tokens are shared out, since a share is a whole number, and batches of several workers are filled a little otherwise.
near_lengths() {
  local there=$1 flag was
  for flag in max-tokens total-updates warmup-updates; do
    [[ $SHARES_ARE_FREE && $there =~ \ --$flag\ ([0-9]+) ]] || continue
    was=${BASH_REMATCH[1]}
    [[ $2 =~ \ --$flag\ ([0-9]+) ]] || continue
    ((20 * (was - BASH_REMATCH[1]) > BASH_REMATCH[1] || 20 * (BASH_REMATCH[1] - was) > BASH_REMATCH[1])) ||
      there=${there/ --$flag $was/ --$flag ${BASH_REMATCH[1]}}
  done
  echo "$there"
}

# only_in COMMAND OTHER: the flags of COMMAND that OTHER does not have so.
only_in() {
  local flags
  flags=$(comm -23 <(flags_of "$1") <(flags_of "$2") | paste -sd ' ' -)
  echo "${flags:-nothing}"
}

flags_of() { sed 's/ --/\n--/g' <<<"$1" | sort; }

# check_data: BIN is what RUN_FOLDER was trained with, here or elsewhere: a model's words are numbers of its dictionary.
check_data() {
  local pairs
  pairs=$(awk -F '\t' '$1 == "pairs" { print $2 }' "$RUN_FOLDER/settings.tsv")
  [[ $pairs == "$PAIRS" ]] ||
    die "$RUN_FOLDER was trained with $pairs pairs, and $BIN has $PAIRS; get the same data, or delete $RUN_FOLDER to train it again"
  [[ $(dictionary_hashes "$BIN") == "$(<"$RUN_FOLDER/dictionaries.sha256")" ]] ||
    die "the dictionaries in $BIN are not those that $RUN_FOLDER was trained with; delete $RUN_FOLDER to train it again"
}

# repair_checkpoints: after a kill, the newest readable checkpoint becomes checkpoint_last.pt, and half-written ones go.
repair_checkpoints() {
  local folder=$RUN_FOLDER/checkpoints verdict
  verdict=$(python recipes/checkpoints.py "$folder") || die "cannot check the checkpoints in $folder"
  [[ -z $verdict ]] || log "$RUN_FOLDER: $verdict"
}

# json_field NAME TEXT: the value of a field in a line of fairseq's JSON log.
json_field() { [[ $2 =~ \"$1\":\ \"?([^\",}]+) ]] && printf '%s' "${BASH_REMATCH[1]}"; }

# watch_training LABEL: reads fairseq-train's output; shows a line now and then, and keeps the seconds so far in wall_seconds.
watch_training() {
  local line label=$1 before=0 began=$SECONDS first='' at elapsed left epoch update
  [[ ! -s $RUN_FOLDER/wall_seconds ]] || before=$(<"$RUN_FOLDER/wall_seconds")
  while IFS= read -r line || [[ -n $line ]]; do
    elapsed=$((SECONDS - began))
    case $line in
      *'| train_inner | {'*)
        update=$(json_field num_updates "$line") || continue
        epoch=$(json_field epoch "$line") || continue
        at=$update
        [[ $UNIT == update ]] || at=$(json_field update "$line") # epochs so far, with a fraction
        at=$(awk -v at="$at" 'BEGIN { print int(at * 1000) }') left=
        [[ -n $first ]] || first=$at
        if ((at > first)); then
          # this run's rest, and as many whole runs of its length as follow
          left=$((elapsed * (LENGTH * 1000 - at + LENGTH * 1000 * RUNS_TO_COME / JOBS) / (at - first)))
          left=", about $(minutes "$left") of training left"
        fi
        log "$label: $(progress "$epoch" "$update"), loss $(json_field loss "$line"), lr $(json_field lr "$line")$left"
        ;;
      *'| valid | {'*)
        update=$(json_field valid_num_updates "$line") || continue
        epoch=$(json_field epoch "$line") || continue
        log "$label: $(progress "$epoch" "$update") done, validation loss $(json_field valid_loss "$line")"
        ;;
      *'-LN: '*) log "$label: ${line##*| }" ;; # the model says what was built
      *) continue ;;
    esac
    echo $((before + elapsed)) | write "$RUN_FOLDER/wall_seconds"
  done
  echo $((before + SECONDS - began)) | write "$RUN_FOLDER/wall_seconds"
}

# progress EPOCH UPDATE: where a training is.
progress() { if [[ $UNIT == epoch ]]; then echo "epoch $1 of $LENGTH, update $2"; else echo "update $2 of $LENGTH"; fi; }

minutes() { if (($1 < 90)); then echo "$1 s"; else echo "$((($1 + 30) / 60)) min"; fi; }

# divergence LOG [FROM]: fairseq's message when LOG, from byte FROM on, tells that a training diverged; status 1 otherwise. All of it is
# searched, for a launcher may print much below its workers' messages. Workers with GPUs compare their gradients' norms first, and
# call NaN or Inf "inconsistent", with the norms of all ranks.
divergence() {
  tail -c +$((${2:-0} + 1)) "$1" | tr -d '\r' | awk '
    match($0, /FloatingPointError: .*(gradients are Nan\/Inf|Minimum loss scale reached).*/) { found = substr($0, RSTART) }
    match($0, /FloatingPointError: .*gradients are inconsistent between workers/) { differ = substr($0, RSTART, RLENGTH) }
    differ && /rank +[0-9]+ = -?(nan|inf)/ { found = differ ", of which some are NaN or Inf" }
    END { if (found) print found; exit !found }'
}

# last_update LOG FROM: the last update that LOG tells of, of trainings from byte FROM on or of a validation before, or 0.
last_update() {
  {
    grep -aF '| valid | {' "$1" || true
    tail -c +$(($2 + 1)) "$1" | grep -aF '| train_inner | {' || true
  } | sed -nE 's/.*"(valid_)?num_updates": "?([0-9]+).*/\2/p' | sort -n | tail -n 1 | grep . || echo 0
}

# lock_run: no other start works on RUN_FOLDER until unlock_run, nor while a fairseq-train of a killed start still does.
lock_run() {
  mkdir -p "$RUN_FOLDER"
  exec {LOCK}>"$RUN_FOLDER/lock"
  if command -v flock >/dev/null; then
    flock -n "$LOCK" || die "$RUN_FOLDER is being trained or scored by another process (perhaps of a killed start); wait for it, or end it"
  fi
}

unlock_run() { exec {LOCK}>&-; }

# train RUN SEED LABEL: trains a run to its end, or to its divergence; goes on where a killed one stopped.
train() {
  local status launch=() message update before=0
  describe "$1" "$2"
  [[ ${ROW[optimizer]} != radam || ${ROW[decay]} == linear ]] ||
    log "$3: the paper decays RAdam's rate linearly (section 4), and with another decay Post-LN may not train"
  read -r -a launch <<<"$LAUNCH"
  # a launcher may want a path
  launch+=("$(if [[ ! $LAUNCH ]]; then echo fairseq-train; else command -v fairseq-train || echo "$PWD/.venv/bin/fairseq-train"; fi)")
  launch+=("${TRAIN[@]}" ${LAUNCH_FLAGS[@]+"${LAUNCH_FLAGS[@]}"})
  if [[ $DRY_RUN ]]; then
    quoted "${launch[@]}"
    return
  fi
  lock_run
  claim
  if finished train "$1" "$2"; then
    log "$3: trained already"
    unlock_run
    return
  fi
  repair_checkpoints
  log "$3: $MAX_TOKENS tokens an update, at most $LENGTH ${UNIT}s; log: $RUN_FOLDER/train.log"
  [[ ! -f $RUN_FOLDER/train.log ]] || before=$(wc -c <"$RUN_FOLDER/train.log")
  set +e
  "${launch[@]}" </dev/null 2>&1 |
    tee -a "$RUN_FOLDER/train.log" | watch_training "$3"
  status=${PIPESTATUS[0]} # of fairseq-train
  set -e
  if ((status == 0)); then
    [[ -s $RUN_FOLDER/checkpoints/checkpoint_last.pt ]] ||
      die "fairseq-train wrote no checkpoint for $1, seed $2; see $RUN_FOLDER/train.log"
    date -u +%Y-%m-%dT%H:%M:%SZ | write "$RUN_FOLDER/trained"
  elif message=$(divergence "$RUN_FOLDER/train.log" "$before"); then
    update=$(last_update "$RUN_FOLDER/train.log" "$before")
    printf '%s\t%s\n' "$((update + 1))" "$message" | write "$RUN_FOLDER/diverged"
    log "$3: diverged after update $update ($message); a result, going on"
    [[ ${ROW[ln_position]} != pre ]] || log "$3: a Pre-LN run is not expected to diverge"
  else
    message=$(tail -n 5 "$RUN_FOLDER/train.log" | awk 'NF { last = $0 } END { print substr(last, 1, 200) }')
    die "training of $1, seed $2, stopped with status $status (${message:-it printed nothing}); see $RUN_FOLDER/train.log," \
      "and start again to go on from the last checkpoint"
  fi
  unlock_run
}

# decode CHECKPOINT SUBSET OUT: translates a subset in as many shards as there are cores (or GPUs) into OUTPUTS, OUT.shard<i>.txt.
decode() {
  local checkpoint=$1 subset=$2 out=$3 text shards lines=0 sentences=SENTENCES i pids=() failed='' command
  text=$TEXT/$(text_of "$subset").$TGT
  shards=$((GPUS > 0 ? GPUS : CORES))
  if [[ ! $DRY_RUN || -f $text ]]; then
    lines=$(wc -l <"$text")
    ((shards * 50 <= lines)) || shards=$(((lines + 49) / 50))
    # two batches a shard at least, of long and of short sentences: none is without one, and all end at about the same time
    sentences=$(((lines + 2 * shards - 1) / (2 * shards)))
  fi
  # world size and rank cut the batches into shards here; fairseq-generate starts no workers
  command=(fairseq-generate "$BIN" --user-dir "$USER_DIR" --task translation --source-lang "$SRC" --target-lang "$TGT"
    --path "$checkpoint" --gen-subset "$subset" "${DECODING[@]}" --batch-size "$sentences" "${EVERY_SENTENCE[@]}"
    --no-progress-bar --distributed-world-size "$shards" --distributed-rank)
  OUTPUTS=()
  for ((i = 0; i < shards; i++)); do OUTPUTS+=("$out.shard$i.txt"); done
  if [[ $DRY_RUN ]]; then
    for i in "${!OUTPUTS[@]}"; do shown_to "${OUTPUTS[i]}" "${command[@]}" "$i"; done
    return
  fi
  rm -f "$out".shard*
  mkdir -p "$(dirname "$out")"
  for i in "${!OUTPUTS[@]}"; do
    (
      threads $((GPUS > 0 || shards >= CORES ? 1 : CORES / shards))
      use_gpu "$i"
      exec "${command[@]}" "$i"
    ) </dev/null >"${OUTPUTS[i]}" 2>"$out.shard$i.log" &
    pids+=($!)
  done
  for i in "${!pids[@]}"; do wait "${pids[i]}" || failed=$out.shard$i.log; done
  [[ -z $failed ]] || die "fairseq-generate failed on $checkpoint ($(tail -n 1 "$failed")); see $failed"
}

# use_gpu N: this shell uses the N-th of its GPUs, and no other; nothing where there is none.
use_gpu() {
  local list
  ((GPUS > 0)) || return 0
  IFS=, read -r -a list <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s , 0 $((GPUS - 1)))}"
  export CUDA_VISIBLE_DEVICES=${list[$1 % ${#list[@]}]}
}

# fairseq's names: test is the test set, test1 the first 500 lines of valid.
text_of() { if [[ $1 == test ]]; then echo test; else echo valid500; fi; }

# scored FOLDER NAME [EPOCH]: whether scores.tsv has a row of this subset (and epoch).
scored() {
  [[ -f $1/scores.tsv ]] && awk -F '\t' -v name="$2" -v epoch="${3:-}" '
    NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
    $at["subset"] == name && (epoch == "" || $at["epoch"] == epoch) { found = 1 }
    END { exit !found }' "$1/scores.tsv"
}

# score_one EPOCH UPDATES SUBSET [N]: a row of scores.tsv, unless it is there: of the epoch's checkpoint, or of the average of the
# N checkpoints up to it.
score_one() {
  local epoch=$1 updates=$2 subset=$3 name=$3 checkpoint=checkpoint$1.pt out began=$SECONDS
  [[ -z ${4:-} ]] || name=$3-average$4 checkpoint=average$4.pt
  out=$RUN_FOLDER/decode/epoch$epoch.$name
  [[ $DRY_RUN ]] || ! scored "$RUN_FOLDER" "$name" "$epoch" || return 0
  if [[ ${4:-} ]]; then
    do_or_show fairseq-ln average --out "$RUN_FOLDER/checkpoints/$checkpoint" --last "$4" --dir "$RUN_FOLDER/checkpoints" \
      --up-to "$epoch" || die "averaging the last $4 checkpoints of $RUN_FOLDER failed"
  fi
  decode "$RUN_FOLDER/checkpoints/$checkpoint" "$subset" "$out"
  do_or_show fairseq-ln score --reference "$TEXT/$(text_of "$subset").$TGT" --lang "$TGT" ${LOWERCASE:+"$LOWERCASE"} \
    ${SCORING[@]+"${SCORING[@]}"} --subset "$name" --epoch "$epoch" --updates "$updates" --checkpoint "$checkpoint" \
    --out "$RUN_FOLDER/scores.tsv" "${OUTPUTS[@]}" || die "scoring of $out.shard*.txt failed"
  [[ ! $DRY_RUN ]] || return 0
  add_score_seconds $((SECONDS - began))
  [[ $subset == test ]] || rm -f "$out".shard* # the translations of the test set stay
}

# note_scorer: scored_with.json is of this machine and code; what scored before, if that was another, keeps a name with a number.
note_scorer() {
  local now file=$RUN_FOLDER/scored_with number=1
  now=$(fairseq-ln environment) || die "fairseq-ln environment failed"
  if [[ -s $file.json && -s $RUN_FOLDER/scores.tsv && $(<"$file.json") != "$now" ]]; then
    while [[ -e $file.$number.json ]]; do number=$((number + 1)); done
    mv "$file.json" "$file.$number.json"
  fi
  write "$file.json" <<<"$now"
}

# add_score_seconds N: what scoring has taken so far, over all starts.
add_score_seconds() {
  local before=0
  [[ ! -s $RUN_FOLDER/score_seconds ]] || before=$(<"$RUN_FOLDER/score_seconds")
  echo $((before + $1)) | write "$RUN_FOLDER/score_seconds"
}

# score RUN SEED LABEL: each score_interval-th epoch's checkpoint, the last and the best (by validation loss) on valid500; the
# last, the best and with AVERAGE the average of the last on the whole test set. A dry run shows it of one epoch, N.
score() {
  local epochs epoch at updates best='' last='' count=0 total
  describe "$1" "$2"
  if [[ $DRY_RUN ]]; then
    score_one N UPDATES test1
    score_one N UPDATES test
    [[ -z $AVERAGE ]] || score_one N UPDATES test "$AVERAGE"
    return
  fi
  finished train "$1" "$2" || die "$1, seed $2, is not trained; start with stage train"
  lock_run
  claim
  if finished score "$1" "$2"; then
    log "$3: scored already"
    unlock_run
    return
  fi
  note_scorer
  epochs=$(python recipes/epochs.py "$RUN_FOLDER") || exit 1
  if [[ -n $epochs ]]; then
    best=$(sort -k 3,3g -k 1,1n <<<"$epochs" | head -n 1 | cut -d ' ' -f 1)
    last=$(tail -n 1 <<<"$epochs" | cut -d ' ' -f 1)
    total=$(wc -l <<<"$epochs")
    updates=$(tail -n 1 <<<"$epochs" | cut -d ' ' -f 2)
    while read -r epoch at _ <&3; do
      count=$((count + 1))
      if ((epoch % PRESET_ROW[score_interval])) && [[ $epoch != "$best" && $epoch != "$last" ]]; then continue; fi
      log "$3: scoring epoch $epoch ($count of $total)"
      score_one "$epoch" "$at" test1
      if [[ $epoch == "$best" || $epoch == "$last" ]]; then score_one "$epoch" "$at" test; fi
    done 3<<<"$epochs"
    if [[ -n $AVERAGE ]] && ((total >= AVERAGE)); then
      score_one "$last" "$updates" test "$AVERAGE"
    elif [[ -n $AVERAGE ]]; then
      log "$3: only $total epochs were finished, so there is no average of $AVERAGE"
      write "$RUN_FOLDER/too-short-for-average$AVERAGE" </dev/null
    fi
  else
    log "$3: no epoch was finished, so there is nothing to score"
  fi
  date -u +%Y-%m-%dT%H:%M:%SZ | write "$RUN_FOLDER/done"
  unlock_run
}

# -- All runs --

# each_run ACTION: train or score of every chosen run and seed. Trains JOBS at a time; scoring uses all cores for one.
each_run() {
  local action=$1 seed run label number=0 running=0 started=0 failed='' began=$SECONDS slot slots=()
  local total=$((${#RUN_NAMES[@]} * ${#SEED_LIST[@]})) todo jobs=1
  todo=$(unfinished "$action")
  [[ $action == score ]] || log "$BATCH"
  if [[ ! $DRY_RUN ]]; then
    [[ $action != train || ! $BPE ]] || check_lengths
    [[ $action == score ]] || jobs=$JOBS
    threads $((CORES / jobs > 0 ? CORES / jobs : 1))
    if ((todo > 0)); then
      check_environment "$action"
      WORKED=yes
    fi
    [[ $action != train ]] || note_chosen
  fi
  for seed in "${SEED_LIST[@]}"; do
    for run in "${RUN_NAMES[@]}"; do
      number=$((number + 1)) label="run $number of $total, $run, seed $seed"
      if ((running == jobs)); then
        wait -n || failed=yes
        running=$((running - 1))
      fi
      [[ -z $failed ]] || break 2
      if [[ ! $DRY_RUN ]] && ! finished "$action" "$run" "$seed"; then
        if ((started > running)); then
          log "$action, run $number of $total: about" \
            "$(minutes $(((SECONDS - began) * (todo - started) / (started - running)))) left in this stage"
        fi
        started=$((started + 1))
      fi
      RUNS_TO_COME=$((todo - started))
      if ((jobs == 1)); then
        "$action" "$run" "$seed" "$label"
      else
        # the process of each slot, which has a GPU for itself; one is free here
        for ((slot = 0; slot < jobs; slot++)); do
          [[ ${slots[slot]:-} ]] && kill -0 "${slots[slot]}" 2>/dev/null || break
        done
        (
          use_gpu "$slot"
          "$action" "$run" "$seed" "$label"
        ) &
        slots[slot]=$!
        running=$((running + 1))
      fi
    done
  done
  while ((running-- > 0)); do wait -n || failed=yes; done
  [[ -z $failed ]] || die "a run stopped; see above"
}

# note_chosen: RUNS/chosen has the chosen runs and seeds, beside those of earlier starts: what `fairseq-ln report` takes as wanted.
note_chosen() {
  local seed run
  mkdir -p "$RUNS"
  {
    [[ ! -f $RUNS/chosen ]] || cat "$RUNS/chosen"
    for seed in "${SEED_LIST[@]}"; do
      for run in "${RUN_NAMES[@]}"; do printf '%s\t%s\n' "$run" "$seed"; done
    done
  } | awk '!seen[$0]++' | write "$RUNS/chosen"
}

# finished ACTION RUN SEED: whether a run is trained, or what comes after that is done.
finished() {
  local folder=$RUNS/$2/seed$3
  if [[ $1 == train ]]; then is_trained "$folder"; else is_done "$folder"; fi
}

# is_trained FOLDER: whether a run is trained to its end or to its divergence.
is_trained() { [[ -f $1/trained || -f $1/diverged ]]; }

# is_done FOLDER: whether a run is scored, with AVERAGE the average too where it has one.
is_done() {
  [[ -f $1/done ]] && { [[ -z $AVERAGE || -f $1/diverged || -f $1/too-short-for-average$AVERAGE ]] ||
    scored "$1" "test-average$AVERAGE"; }
}

unfinished() {
  local seed run count=0
  for seed in "${SEED_LIST[@]}"; do
    for run in "${RUN_NAMES[@]}"; do finished "$1" "$run" "$seed" || count=$((count + 1)); done
  done
  echo "$count"
}

# report: RESULTS.md and .html, results.tsv and figures in RUNS, unless they were made of just these runs.
report() {
  local made_of
  if [[ ! $DRY_RUN && -d $RUNS ]]; then
    made_of=$(report_inputs)
    if [[ -f $RUNS/RESULTS.md && -f $RUNS/RESULTS.html && -d $RUNS/figures && -f $RUNS/reported &&
      $(<"$RUNS/reported") == "$made_of" ]]; then
      log "$RUNS/RESULTS.md is up to date"
      return
    fi
  fi
  do_or_show fairseq-ln report "$RUNS" --plan recipes/runs.tsv || die "fairseq-ln report $RUNS failed"
  [[ $DRY_RUN ]] || write "$RUNS/reported" <<<"$made_of"
  WORKED=yes
}

# report_inputs: the plan, the report's code and the files of RUNS that it reads, with their sums.
report_inputs() {
  cksum recipes/runs.tsv "$USER_DIR"/study/*.py
  (cd "$RUNS" && find . \( -path ./chosen -o -path '*/seed*/*' \) -type f ! -name lock ! -name '*.pt*' ! -name '*.new' -exec cksum {} + |
    LC_ALL=C sort -k 3)
}

# finish: the last line of a recipe.
finish() {
  if [[ $DRY_RUN ]]; then
    log "dry run: nothing was done"
  elif [[ -z $WORKED ]]; then
    log "nothing to do: all of this was done before$(where_results)"
  else
    log "finished$(where_results)"
  fi
}

where_results() { [[ ! -f $RUNS/RESULTS.md ]] || echo "; see $RUNS/RESULTS.md"; }
