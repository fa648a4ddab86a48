#!/usr/bin/env bash
# Finds or makes the Python environment of this project.
#
#   . recipes/environment.sh        activates it in this shell (what every recipe does first)
#   bash recipes/environment.sh     only makes it; activate it later with `. .venv/bin/activate`
#
# The `python` on PATH is used as it is when it has all that is needed (see MODULES and COMMANDS) and is not .venv's own. Otherwise
# .venv is made: that needs Python 3.11 to 3.13, a C++ compiler, Python's headers, and about 5 minutes on 2 cores (fairseq is built
# from source). A second start does nothing; changed pins, kernels or setup.py install again; a killed set-up goes on. pip's output:
# .venv/setup.log.
#
# Settings: PYTHON=PROGRAM (the Python to make .venv with), TORCH_INDEX=URL (pip index to take torch from, for example one with
# CPU-only builds), ENVIRONMENT_NEEDS="pytest ..." (more modules or commands that the environment on PATH must have to be used).

LNPLUGIN_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
MODULES="torch fairseq sacrebleu sacremoses subword_nmt matplotlib markdown_it tensorboardX fairseq_lnplugin"
COMMANDS="fairseq-preprocess fairseq-train fairseq-generate fairseq-ln"

environment_say() { printf '%s environment: %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

# Prints what the `python` on PATH lacks to be used as it is; nothing when it has everything.
environment_lacks() {
  local name
  command -v python >/dev/null || { echo "a command python"; return; }
  # shellcheck disable=SC2086  # lists of words
  python - $MODULES ${ENVIRONMENT_NEEDS:-} <<'PYTHON' 2>/dev/null || echo "Python 3.11 or later"
import importlib.util, shutil, sys
if sys.version_info < (3, 11):
    sys.exit(1)
for name in sys.argv[1:]:
    if importlib.util.find_spec(name) is None and shutil.which(name) is None:
        print(name)
PYTHON
  for name in $COMMANDS; do command -v "$name" >/dev/null || echo "$name"; done
}

# Prints the Python to make .venv with.
environment_python() {
  local candidate version
  for candidate in ${PYTHON:+"$PYTHON"} ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $version in 3.11 | 3.12 | 3.13) echo "$candidate"; return 0 ;; esac
  done
  if [[ -n ${PYTHON:-} ]]; then
    if [[ -n ${version:-} ]]; then version="is Python $version"; else version="does not start"; fi
    environment_say "PYTHON=$PYTHON $version; give one of Python 3.11, 3.12 or 3.13"
  else
    environment_say "no Python 3.11, 3.12 or 3.13 found; install one of them, or name it with PYTHON=PROGRAM"
  fi
  return 1
}

environment_hash() {
  cat "$LNPLUGIN_ROOT"/{recipes/constraints.txt,setup.py,pyproject.toml,fairseq_lnplugin/csrc/kernels.cpp} | cksum | tr ' ' -
}

# environment_pip WHAT PIP-ARGUMENT...: pip install, quietly; the end of its output when it fails.
environment_pip() {
  local what=$1 log=$LNPLUGIN_ROOT/.venv/setup.log
  shift
  environment_say "installing $what"
  if ! python -m pip install --no-input -c "$LNPLUGIN_ROOT/recipes/constraints.txt" "$@" </dev/null >>"$log" 2>&1; then
    tail -n 25 "$log" >&2
    environment_say "installing $what failed: see above and $log; start again to go on from here"
    return 1
  fi
}

# Makes or updates .venv, and leaves it activated.
environment_make() {
  local venv=$LNPLUGIN_ROOT/.venv stamp=$LNPLUGIN_ROOT/.venv/lnplugin-installed wanted python clear=() lock lacks
  wanted="$(environment_hash) $LNPLUGIN_ROOT"
  if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
    python=$(environment_python) || return 1
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || {
      environment_say "no C++ compiler found and fairseq is built from source; install one (on Debian or Ubuntu: apt-get install g++)"
      return 1
    }
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || {
      environment_say "$python has no headers (Python.h); install them (on Debian or Ubuntu: apt-get install python3-dev)"
      return 1
    }
    mkdir -p "$venv" || return 1
    exec {lock}>"$venv/lock"
    if command -v flock >/dev/null && ! flock -n "$lock"; then
      environment_say "another set-up of $venv is running; waiting for it"
      flock "$lock"
    fi
  fi
  if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then # again: the one we waited for may have made it
    lacks=$(environment_lacks | head -n 3 | paste -sd ' ' -)
    environment_say "${lacks:+what is on PATH lacks $lacks; }making $venv, about 5 minutes on 2 cores"
    # a folder that was moved or whose Python is gone starts anew
    if [[ -f $stamp && $(<"$stamp") != *" $LNPLUGIN_ROOT" ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then clear=(--clear); fi
    rm -f "$stamp"
    "$python" -m venv ${clear[@]+"${clear[@]}"} "$venv" >&2 || {
      environment_say "$python cannot make a virtual environment (on Debian or Ubuntu: apt-get install python3-venv)"
      return 1
    }
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
    environment_pip "torch (1 of 4)" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch &&
      environment_pip "build tools (2 of 4)" numpy cython setuptools wheel ninja &&
      environment_pip "fairseq, built from source, the longest part (3 of 4)" --no-build-isolation fairseq-fixed==0.12.3.1 &&
      environment_pip "fairseq_lnplugin and its kernels (4 of 4)" --no-build-isolation -e "${LNPLUGIN_ROOT}[test,report,bert]" ||
      return 1
    printf '%s\n' "$wanted" >"$stamp.new" && mv "$stamp.new" "$stamp" || return 1
    environment_say "done: $venv"
  fi
  [[ -z ${lock:-} ]] || exec {lock}>&-
  # shellcheck disable=SC1091
  . "$venv/bin/activate"
}

environment_find_or_make() {
  # our package first, from any working folder; a copy installed by hand cannot hide this checkout's
  export PYTHONPATH=$LNPLUGIN_ROOT${PYTHONPATH:+:$PYTHONPATH}
  # .venv itself, activated, may be of other pins than today's
  [[ -z $(environment_lacks) && $(command -v python) != "$LNPLUGIN_ROOT/.venv/bin/python" ]] || environment_make
}

# shellcheck disable=SC2317
environment_find_or_make || return 1 2>/dev/null || exit 1
