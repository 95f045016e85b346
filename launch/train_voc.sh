#!/usr/bin/env bash
# Train AFA on PASCAL VOC 2012 with the GPUs of this machine, as configs/voc.yaml says: 4 images per step, shared out over at most
# 2 GPUs. With fewer, gradients are accumulated.
#
#   bash launch/train_voc.sh [key=value ...]        for example: bash launch/train_voc.sh train.output=work_dirs/mine
#   GPUS=1 RESTARTS=3 bash launch/train_voc.sh      one GPU; a crashed run of several processes starts again 3 times
#
# After a stop or a kill, the same command continues from the last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh '' # nothing extra; without '' it would see this script's arguments
source launch/distributed.sh

afa_train_here configs/voc.yaml 4 2 "$@"
