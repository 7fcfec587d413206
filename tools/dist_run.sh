#!/usr/bin/env bash
# dist_run.sh SCRIPT GPUS [ARGUMENTS]: run a script of this folder in one process for each GPU; dist_train.sh and
# dist_test.sh call it. Without GPUs, that many processes share the CPU. Several machines: NNODES, NODE_RANK, PORT and
# MASTER_ADDR, as in mmseg. PYTHON chooses the interpreter.
set -eu
script=$1 gpus=$2
shift 2
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" \
    --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" \
    --master_port "${PORT:-29500}" \
    --nproc_per_node "$gpus" \
    "$(dirname "$0")/$script" "$@" --launcher pytorch
