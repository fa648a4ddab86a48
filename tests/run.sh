#!/usr/bin/env bash
# All tests, or those that pytest's arguments choose; makes the environment if there is none.
#
#   bash tests/run.sh
#   bash tests/run.sh -k recipes -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ENVIRONMENT_NEEDS="pytest ${ENVIRONMENT_NEEDS:-}"
# shellcheck source=recipes/environment.sh
. recipes/environment.sh
python -m pytest -q tests "$@"
