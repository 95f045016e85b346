#!/usr/bin/env bash
# Train AFA on the built-in data set from image-level labels, evaluate it, make images and a report. Runs without a GPU.
#
#   bash launch/demo.sh [key=value ...]        for example: bash launch/demo.sh train.seed=2 train.output=work_dirs/demo2
#
# If you run it again, it reuses existing results.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh '' # nothing extra; without '' it would see this script's arguments
source launch/pipeline.sh

output=work_dirs/demo
data=data/shapes
for override in "$@"; do
    case $override in
    train.output=*) output=$(afa_folder "$override") ;;
    dataset.root=*) data=$(afa_folder "$override") ;;
    esac
done

python tools/make_shapes.py --output "$data"
python tools/train.py configs/demo.yaml "$@"
python tools/eval.py "$output/checkpoints/last" "dataset.root=$data" --output "$output/evaluation.json"
python tools/contact_sheet.py "$output/checkpoints/last" "dataset.root=$data" --output "$output/contact_sheet.png"
pictures=()
while read -r name; do
    pictures+=("$data/JPEGImages/$name.jpg")
done < <(head -n 4 "$data/ImageSets/Segmentation/val.txt")
python tools/infer.py "$output/checkpoints/last" "${pictures[@]}" --output "$output/inference"
python tools/report.py "$output/checkpoints/last" "dataset.root=$data" --output "$output/report.html"

cat <<END

table        $output/evaluation.json
report       $output/report.html    a page for your browser
sheet        $output/contact_sheet.png
masks, CAMs  $output/inference
checkpoints  $output/checkpoints/last, $output/checkpoints/best
curves       ${AFA_VENV:-.venv}/bin/tensorboard --logdir $output/tensorboard
END
