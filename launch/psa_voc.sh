#!/usr/bin/env bash
# PSA on PASCAL VOC 2012 with the GPUs of this machine: CAM network, AffinityNet, segmentation network, and the labels that
# each hands to the next, as configs/psa/*.yaml say. docs/psa.md lists the output folders.
#
#   bash launch/psa_voc.sh [key=value ...] [STAGE:key=value ...]      STAGE: cam, affinity, segment
#   bash launch/psa_voc.sh dataset.root=/data/VOC2012 train.output=work_dirs/mine cam:optimiser.lr=0.02
#   GPUS=2 RESTARTS=3 bash launch/psa_voc.sh      two GPUs at most; a crashed stage of several processes starts again 3 times
#
# After a stop or a kill, the same command continues from there.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh '' # nothing extra; without '' it would see this script's arguments
source launch/distributed.sh
source launch/pipeline.sh
source launch/psa.sh

pipeline_read work_dirs/psa cam affinity segment -- "$@"
pipeline_place gpus
psa_pipeline configs/psa/ "$pipeline_folder"
