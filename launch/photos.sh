#!/usr/bin/env bash
# AFA, PSA, EDAM and the supervised bound on photographs, from pretrained encoders: all labels and segmentation networks, one
# table of their scores, a sheet of masks and a report. Runs without a GPU.
#
#   bash launch/photos.sh DATA CNN VIT [key=value ...] [STAGE:key=value ...]
#   bash launch/photos.sh data/photos pretrained/efficientnet-lite0-57934424.pth pretrained/vit_s_focus.onnx train.seed=2
#
# DATA is a folder in VOC layout with classes.txt (docs/data.md). CNN and VIT are files of weights (docs/photos.md says where
# they come from): EfficientNet-Lite0, for the networks that make PSA's and EDAM's labels, and DINOv2 ViT-S/14 with its
# saliency network, for AFA, for all segmentation networks, and for EDAM's saliency maps.
# STAGE: afa, cam, affinity, edam, segment, supervised; segment is for the segmentation networks of PSA and of EDAM.
# Everything is saved to work_dirs/photos, or to train.output=FOLDER. If you run it again, it reuses existing results.
set -euo pipefail
start=$PWD
cd "$(dirname "$0")/.."

given=()
for argument in "$@"; do
    if ((${#given[@]} == 3)); then break; fi
    case $argument in
    /*) place=$argument ;;
    *) place=$start/$argument ;;
    esac
    if ! [ -e "$place" ]; then
        if [[ $argument == *=* ]]; then break; fi
        echo "error: ${argument//$'\n'/ }: there is no such file or folder" >&2
        exit 2
    fi
    # The same place has one spelling: a run goes on only with the settings of its start.
    if [ -d "$place" ]; then place=$(cd "$place" && pwd); else place=$(cd "${place%/*}" && pwd)/${place##*/}; fi
    given+=("$place")
done
if ((${#given[@]} < 3)) || ! [ -d "${given[0]}" ]; then
    echo "error: give DATA CNN VIT, the folder of the images and two files of weights: docs/photos.md explains them" >&2
    exit 2
fi
shift 3
data=${given[0]} cnn=${given[1]} vit=${given[2]}
source launch/pipeline.sh
folder=work_dirs/photos
saliency=
for override in "$@"; do
    case ${override%%=*} in
    *dataset.root | *model.pretrained)
        echo "error: ${override//$'\n'/ }: give the data and the weights as the first three arguments" >&2
        exit 2
        ;;
    dataset.saliency | edam:dataset.saliency) saliency=given ;;
    train.output) folder=$(afa_folder "$override") ;;
    esac
done

source launch/environment.sh onnx
source launch/distributed.sh
source launch/psa.sh
source launch/edam.sh

# What the user sets comes last: of several values of a setting, the last one is used.
own=("dataset.root=$data")
for stage in cam affinity edam; do own+=("$stage:model.pretrained=$cnn"); done
for stage in afa segment supervised; do own+=("$stage:model.pretrained=$vit"); done
if [ -z "$saliency" ]; then own+=("edam:dataset.saliency=$folder/saliency"); fi
pipeline_read "$folder" afa cam affinity edam segment supervised -- "${own[@]}" "$@"
if (($(afa_gpus) > 0)); then pipeline_place gpus; else pipeline_place cores; fi
configs=configs/photos afa=$folder/afa bound=$folder/supervised scores=$folder/scores
masks=$data/SegmentationClassAug
if ! [ -d "$masks" ]; then masks=$data/SegmentationClass; fi

# Report a mistake in the settings of the last stage before the first stage runs.
pipeline_settings afa
stages=("$configs/afa.yaml" "train.output=$afa" "${settings[@]}")
pipeline_settings cam
stages+=(-- "$configs/psa_1_cam.yaml" "${settings[@]}")
pipeline_settings affinity
stages+=(-- "$configs/psa_2_affinity.yaml" "${settings[@]}")
pipeline_settings segment
stages+=(-- "$configs/psa_3_segment.yaml" "${settings[@]}" -- "$configs/edam_2_segment.yaml" "${settings[@]}")
pipeline_settings edam
stages+=(-- "$configs/edam_1_edam.yaml" "${settings[@]}")
pipeline_settings supervised
stages+=(-- "$configs/supervised.yaml" "dataset.pixel_labels=$masks" "${settings[@]}")
facts=$(python launch/stages.py "${stages[@]}")
{ read -r val && read -r scored_val && read -r scored_train; } <<<"$facts"
if [ "$scored_val" = - ]; then
    echo "error: there is nothing to compare: the images of the list '$val' in $data have no true masks" >&2
    exit 2
fi

pipeline_train afa "$configs/afa.yaml" 8 "train.output=$afa"
pipeline_settings afa dataset test
pipeline_label "$afa" "${settings[@]}" --split "$val" --outputs cam refined_label propagated_label --output "${afa}_val"
scored=()
pipeline_score_labels AFA "$scores/afa_cam" "$afa" maps "$configs/afa.yaml" - "$val" cam
pipeline_score_labels AFA "$scores/afa_labels" "$afa" masks "$configs/afa.yaml" - "$val" refined_label propagated_label
pipeline_score "$scores/afa_segment.json" "$afa/checkpoints/last" \
    tools/eval.py "$afa/checkpoints/last" "${settings[@]}" --no-cams --crf

segment_batch=8 # as for the bound
psa_pipeline "$configs/psa_" "$folder/psa"

if [ -z "$saliency" ]; then
    pipeline_settings edam dataset
    for split in "" "$val"; do
        pipeline_run 1 tools/make_saliency.py --config "$configs/edam_1_edam.yaml" "${settings[@]}" ${split:+--split "$split"} \
            --network "$vit" --output "$folder/saliency"
    done
fi
edam_pipeline "$configs/edam_" "$folder/edam"

runs=("AFA=$afa" "PSA=$folder/psa/3_segment" "EDAM=$folder/edam/2_segment")
rows=(
    "AFA=$scores/afa_cam_val.json" "AFA=$scores/afa_labels_val.json" "AFA=$scores/afa_segment.json"
    "PSA=$folder/psa/scores/cam_val.json" "PSA=$folder/psa/scores/affinity_val.json" "PSA=$folder/psa/scores/segment.json"
    "EDAM=$folder/edam/scores/cam_val.json" "EDAM=$folder/edam/scores/crf_val.json"
    "EDAM=$folder/edam/scores/saliency_val.json" "EDAM=$folder/edam/scores/segment.json"
)
taught=(AFA=I PSA=I EDAM=I+S)
if [ "$scored_train" != - ]; then
    pipeline_train supervised "$configs/supervised.yaml" 8 "dataset.pixel_labels=$masks" "train.output=$bound"
    pipeline_settings supervised dataset test
    pipeline_score "$scores/supervised.json" "$bound/checkpoints/last" \
        tools/eval.py "$bound/checkpoints/last" "${settings[@]}" --crf
    runs+=("true masks=$bound")
    rows+=("true masks=$scores/supervised.json")
    taught+=("true masks=pixels")
fi

python launch/compare_sheet.py "$folder/contact_sheet.png" "$data" "${runs[@]}"
python tools/report.py "$afa" "$folder/psa/3_segment" "dataset.root=$data" --output "$folder/report.html"
echo
python tools/summary.py "${rows[@]}" --supervision "${taught[@]}" --output "$folder/summary.json"
cat <<END

report       $folder/report.html    a page for your browser: AFA and PSA side by side
images       $folder/contact_sheet.png
scores       $folder/summary.json
END
