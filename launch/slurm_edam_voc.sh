#!/usr/bin/env bash
# EDAM on PASCAL VOC 2012 under SLURM, on the GPUs of one node, as configs/edam/*.yaml say. Submit it from the folder of the
# repository, once .venv is there (bash launch/test.sh makes it).
#
#   sbatch launch/slurm_edam_voc.sh dataset.saliency=data/saliency [key=value ...] [STAGE:key=value ...]
#   sbatch --gpus-per-node=1 launch/slurm_edam_voc.sh train.output=work_dirs/mine      without saliency; STAGE: edam, segment
#
# Before its time limit, and when it is pre-empted, the job saves a checkpoint, is requeued and continues later.
#SBATCH --job-name=afa_edam_voc
#SBATCH --nodes=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=afa_edam_voc_%j.log
#SBATCH --signal=B:USR1@300
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the folder of the repository}"
PATH="${AFA_VENV:-$PWD/.venv}/bin:$PATH"
source launch/distributed.sh
source launch/pipeline.sh
source launch/edam.sh

pipeline_read work_dirs/edam edam segment -- "$@"
pipeline_place slurm
afa_slurm_listen
code=0
edam_pipeline configs/edam/ "$pipeline_folder" || code=$?
afa_slurm_end "$code"
