#!/usr/bin/env bash
# Train one recipe with several seeds, evaluate each run, and print mean and standard deviation of their scores.
#
#   bash launch/seeds.sh RECIPE SEED ... [key=value ...]
#   bash launch/seeds.sh configs/demo.yaml 1 2 3 train.steps=600 train.output=work_dirs/short
#
# RECIPE is a recipe's name or a YAML file, as for tools/train.py. Each run is saved to FOLDER/seed_SEED. FOLDER is
# train.output, or else the recipe's output folder with _seeds after its name. The table is also saved to
# FOLDER/comparison.json and .md. If you start it again, it continues: unfinished runs are continued, finished runs are kept
# and scored once. You can add seeds.
# GPUS: how many to use (default: as many as can share a step's images out); without a GPU it runs on the processor.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh '' # nothing extra; without '' it would see this script's arguments
source launch/distributed.sh
source launch/pipeline.sh

recipe=${1:-}
if [ -z "$recipe" ] || [[ $recipe == *=* ]]; then
    echo "error: give a recipe and seeds, for example: bash launch/seeds.sh configs/demo.yaml 1 2 3" >&2
    exit 2
fi
shift
seeds=()
settings=()
places=()
folder=
for argument in "$@"; do
    case $argument in
    train.output=*) folder=$(afa_folder "$argument") ;;
    train.seed=*)
        echo "error: $argument: give the seeds after the recipe, for example: bash launch/seeds.sh $recipe 1 2 3" >&2
        exit 2
        ;;
    *=*)
        settings+=("$argument")
        case $argument in dataset.* | test.*) places+=("$argument") ;; esac # what an evaluation may be told
        ;;
    *)
        if ! [[ $argument =~ ^(0|[1-9][0-9]{0,17})$ ]]; then
            echo "error: ${argument//$'\n'/ }: give seeds (whole numbers) and settings (key=value)" >&2
            exit 2
        fi
        if [[ " ${seeds[*]-} " == *" $argument "* ]]; then
            echo "error: the seed $argument is given twice" >&2
            exit 2
        fi
        seeds+=("$argument")
        ;;
    esac
done
if ((${#seeds[@]} == 0)); then
    echo "error: give seeds after the recipe, for example: bash launch/seeds.sh $recipe 1 2 3" >&2
    exit 2
fi

facts=$(python launch/recipe.py "$recipe" ${settings[@]+"${settings[@]}"})
{
    read -r images
    read -r at_once
} <<<"$facts"
folder=${folder:-${facts#*$'\n'*$'\n'}_seeds}
if (($(afa_gpus) > 0)); then pipeline_place gpus; else pipeline_place cores; fi
shared=()
processes=1
if [ "$pipeline_on" = gpus ]; then
    each=1
    if [[ $images == *x* ]]; then each=${images#*x}; fi
    processes=$(afa_share "${images%x*}" "$pipeline_processes")
    if ((processes > 1)); then
        own=$((${images%x*} * each / processes))
        if ((own % at_once)); then at_once=$own; fi
        shared=("train.batch_size=$at_once" "train.accumulate=$((own / at_once))")
    fi
fi

runs=()
for seed in "${seeds[@]}"; do
    run=$folder/seed_$seed
    runs+=("$run")
    pipeline_run "$processes" tools/train.py "$recipe" ${settings[@]+"${settings[@]}"} ${shared[@]+"${shared[@]}"} \
        "train.seed=$seed" "train.output=$run"
    pipeline_score "$run/evaluation.json" "$run/checkpoints/last" \
        tools/eval.py "$run/checkpoints/last" ${places[@]+"${places[@]}"}
done
echo
python tools/compare.py "${runs[@]}" --output "$folder/comparison.json" "$folder/comparison.md"
