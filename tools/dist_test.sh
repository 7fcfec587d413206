#!/usr/bin/env bash
# Test on several GPUs: mmseg's tools/dist_test.sh with its arguments.
set -eu
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [arguments of tools/test.py]" >&2
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
exec "$(dirname "$(readlink -f "$0")")/dist_run.sh" test.py "$gpus" "$config" "$checkpoint" "$@"
