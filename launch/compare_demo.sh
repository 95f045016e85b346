#!/usr/bin/env bash
# AFA, PSA, EDAM and the supervised bound on the built-in data set: the same images, the same scoring, one table. The column
# supervision says which labels each one used: image-level labels (I), saliency maps (S), pixels. Runs without a GPU.
#
#   bash launch/compare_demo.sh [train.seed=N] [dataset.root=FOLDER] [train.output=FOLDER]
#
# It reuses finished runs of launch/demo.sh, psa_demo.sh, edam_demo.sh and configs/segment/demo.yaml. All runs are in one
# folder: work_dirs, or train.output. If you run it again, it reuses existing results.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh '' # nothing extra; without '' it would see this script's arguments
source launch/distributed.sh
source launch/pipeline.sh

folder=work_dirs
data=data/shapes
shared=()
for override in "$@"; do
    case $override in
    train.output=*) folder=$(afa_folder "$override") ;;
    dataset.root=*) data=$(afa_folder "$override") ;;
    train.seed=*) shared+=("$override") ;;
    *)
        echo "error: $override: only train.seed=N, dataset.root=FOLDER and train.output=FOLDER can be set here" >&2
        exit 2
        ;;
    esac
done
shared+=("dataset.root=$data")

afa=$folder/demo psa=$folder/psa_demo edam=$folder/edam_demo bound=$folder/segment_demo
bash launch/demo.sh "${shared[@]}" "train.output=$afa"
bash launch/psa_demo.sh "${shared[@]}" "train.output=$psa"
bash launch/edam_demo.sh "${shared[@]}" "train.output=$edam"
pipeline_place cores
python tools/train.py configs/segment/demo.yaml "${shared[@]}" \
    "dataset.pixel_labels=$data/SegmentationClass" "train.output=$bound"
pipeline_score "$bound/evaluation.json" "$bound/checkpoints/last" \
    tools/eval.py "$bound/checkpoints/last" "dataset.root=$data"

mkdir -p "$folder/compare_demo"
python launch/compare_sheet.py "$folder/compare_demo/contact_sheet.png" "$data" \
    "AFA=$afa" "PSA=$psa/3_segment" "EDAM=$edam/2_segment" "true masks=$bound"
echo
python tools/summary.py "AFA=$afa/evaluation.json" \
    "PSA=$psa/scores/cam_val.json" "PSA=$psa/scores/affinity_val.json" "PSA=$psa/scores/segment.json" \
    "EDAM without saliency=$edam/scores/cam_val.json" "EDAM without saliency=$edam/scores/crf_val.json" \
    "EDAM without CRF=$edam/scores/saliency_no_crf_val.json" "EDAM=$edam/scores/saliency_val.json" "EDAM=$edam/scores/segment.json" "true masks=$bound/evaluation.json" \
    --supervision AFA=I PSA=I "EDAM without saliency=I" "EDAM without CRF=I+S" EDAM=I+S "true masks=pixels" \
    --output "$folder/compare_demo/summary.json"
