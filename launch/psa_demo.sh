#!/usr/bin/env bash
# PSA on the built-in data set, from image-level labels: CAM network, AffinityNet, segmentation network, their scores in one
# table, images and a report. Runs without a GPU.
#
#   bash launch/psa_demo.sh [key=value ...] [STAGE:key=value ...]      STAGE: cam, affinity, segment
#   bash launch/psa_demo.sh train.seed=2 train.output=work_dirs/psa_demo2
#
# If you run it again, it reuses existing results.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh '' # nothing extra; without '' it would see this script's arguments
source launch/distributed.sh
source launch/pipeline.sh
source launch/psa.sh

pipeline_read work_dirs/psa_demo cam affinity segment -- "$@"
pipeline_place cores
data=data/shapes
for override in "$@"; do
    case $override in
    dataset.root=*) data=$(afa_folder "$override") ;;
    esac
done

python tools/make_shapes.py --output "$data"
# AffinityNet and the segmentation network start from the CAM network: there are no other weights of this size.
psa_pipeline configs/psa/demo_ "$pipeline_folder" train.init=@/checkpoints/last
run=$pipeline_folder/3_segment
python tools/contact_sheet.py "$run/checkpoints/last" "dataset.root=$data" --output "$pipeline_folder/contact_sheet.png"
python tools/report.py "$run/checkpoints/last" "dataset.root=$data" --output "$pipeline_folder/report.html"

cat <<END
report       $pipeline_folder/report.html    a page for your browser
images       $pipeline_folder/contact_sheet.png
curves       ${AFA_VENV:-.venv}/bin/tensorboard --logdir $pipeline_folder
END
