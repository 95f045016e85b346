#!/usr/bin/env bash
# Train AFA on COCO 2014 with the GPUs of this machine, as configs/coco.yaml says: 8 images per step, shared out over at most
# 4 GPUs. With fewer, gradients are accumulated.
#
#   bash launch/train_coco.sh [key=value ...]        for example: bash launch/train_coco.sh train.output=work_dirs/mine
#   GPUS=1 RESTARTS=3 bash launch/train_coco.sh      one GPU; a crashed run of several processes starts again 3 times
#
# After a stop or a kill, the same command continues from the last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh '' # nothing extra; without '' it would see this script's arguments
source launch/distributed.sh

afa_train_here configs/coco.yaml 8 4 "$@"
