#!/usr/bin/env bash
# All tests, or those that pytest's arguments choose; makes the environment if there is none.
#
#   bash tests/run.sh
#   bash tests/run.sh -k recipes -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ENVIRONMENT_NEEDS="pytest xdist sentencepiece ${ENVIRONMENT_NEEDS:-}"
# shellcheck source=recipes/environment.sh
. recipes/environment.sh
# a worker a core; a file stays with one worker, which makes its shared fixtures once
python -m pytest -q -n auto --dist loadfile tests "$@"
