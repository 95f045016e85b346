#!/usr/bin/env bash
# EDAM on the built-in data set, from image-level labels and saliency maps: the network that learns from pairs, its labels,
# the segmentation network, their scores in one table, images and a report. Runs without a GPU.
#
#   bash launch/edam_demo.sh [key=value ...] [STAGE:key=value ...]      STAGE: edam, segment
#   bash launch/edam_demo.sh train.seed=2 train.output=work_dirs/edam_demo2
#   bash launch/edam_demo.sh dataset.saliency=null train.output=work_dirs/edam_plain      without saliency
#
# If you run it again, it reuses existing results.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh '' # nothing extra; without '' it would see this script's arguments
source launch/distributed.sh
source launch/pipeline.sh
source launch/edam.sh

data=data/shapes
for override in "$@"; do
    case $override in
    dataset.root=*) data=$(afa_folder "$override") ;;
    esac
done
# The maps are in the folder of the data; if a setting is given several times, the last one is used.
pipeline_read work_dirs/edam_demo edam segment -- "dataset.saliency=$data/Saliency" "$@"
pipeline_place cores

python tools/make_shapes.py --output "$data"
# The segmentation network starts from the first network: there are no other weights of this size.
edam_pipeline configs/edam/demo_ "$pipeline_folder" train.init=@/checkpoints/last
run=$pipeline_folder/2_segment edam=$pipeline_folder/1_edam scores=$pipeline_folder/scores

# These images are easy for CRF, which hides the effect of saliency: so the labels are scored without CRF, too.
if [ -d "${edam}_val/labels/with_saliency" ]; then
    pipeline_settings edam dataset
    pipeline_label "$edam" ${settings[@]+"${settings[@]}"} edam.rule=released --split val \
        --outputs with_saliency --no-maps --output "${edam}_val_no_crf"
    pipeline_score "$scores/saliency_no_crf_val.json" "${edam}_val_no_crf/manifest.json" \
        tools/score.py masks "${edam}_val_no_crf" ${settings[@]+"${settings[@]}"} \
        --config configs/edam/demo_1_edam.yaml --split val --outputs with_saliency
    echo
    echo "What saliency adds to the labels of the validation images, without CRF and with it:"
    python tools/summary.py "distribution=$scores/cam_val.json" "distribution, saliency=$scores/saliency_no_crf_val.json" \
        "CRF=$scores/crf_val.json" "CRF, saliency=$scores/saliency_val.json" \
        --supervision distribution=I "distribution, saliency=I+S" CRF=I "CRF, saliency=I+S"
    echo
fi
python tools/contact_sheet.py "$run/checkpoints/last" "dataset.root=$data" --output "$pipeline_folder/contact_sheet.png"
python tools/report.py "$run/checkpoints/last" "dataset.root=$data" --output "$pipeline_folder/report.html"

cat <<END
report       $pipeline_folder/report.html    a page for your browser
images       $pipeline_folder/contact_sheet.png
curves       ${AFA_VENV:-.venv}/bin/tensorboard --logdir $pipeline_folder
END
