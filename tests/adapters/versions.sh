#!/usr/bin/env bash
# The adapter's contract with TRL under several of its versions, each put in front of the environment's own:
#   tests/adapters/versions.sh [version ...]
# VENV names the environment (.venv), TARGETS keeps what is downloaded between runs, TESTS names what is run.
set -uo pipefail
cd "$(dirname "$0")/../.."
venv=${VENV:-.venv} targets=${TARGETS:-$(mktemp -d)} tests=${TESTS:-tests/adapters/test_contract.py}
[ $# -gt 0 ] || set -- 1.0.0 1.10.0 1.12.0 1.13.0 1.14.0 1.16.0
install() { "$venv/bin/pip" install --quiet --disable-pip-version-check --target "$@"; }

# TRL up to 1.14 imports requests, which nothing that it declares brings any more.
[ -d "$targets/requests" ] || install "$targets/requests" requests || exit 2
failed=0
for version in "$@"; do
  at="$targets/trl-$version"
  [ -d "$at" ] || install "$at" --no-deps "trl==$version" || { echo "trl $version: not installed"; failed=1; continue; }
  said=$(OMP_NUM_THREADS=1 PYTHONPATH="$at:$targets/requests" "$venv/bin/pytest" -q -p no:cacheprovider "$tests" 2>&1)
  [ $? -eq 0 ] || { failed=1; grep '^\(FAILED\|ERROR\)' <<<"$said"; }
  echo "trl $version: $(tail -n 1 <<<"$said")"
done
exit $failed
