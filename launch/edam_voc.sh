#!/usr/bin/env bash
# EDAM on PASCAL VOC 2012 with the GPUs of this machine: the network that learns from pairs, its labels, the segmentation
# network, as configs/edam/*.yaml say. docs/edam.md lists the output folders.
#
#   bash launch/edam_voc.sh dataset.saliency=data/saliency [key=value ...] [STAGE:key=value ...]      STAGE: edam, segment
#   bash launch/edam_voc.sh                       without saliency maps: the labels are those of the CRF
#   GPUS=2 RESTARTS=3 bash launch/edam_voc.sh     two GPUs at most; a crashed stage of several processes starts again 3 times
#
# After a stop or a kill, the same command continues from there.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh '' # nothing extra; without '' it would see this script's arguments
source launch/distributed.sh
source launch/pipeline.sh
source launch/edam.sh

pipeline_read work_dirs/edam edam segment -- "$@"
pipeline_place gpus
edam_pipeline configs/edam/ "$pipeline_folder"
