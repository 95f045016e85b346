#!/usr/bin/env bash
# Train AFA on COCO 2014 under SLURM, on one node or several, as configs/coco.yaml says: 8 images per step, whatever the
# number of GPUs. Submit it from the folder of the repository, once .venv is there (bash launch/test.sh makes it).
#
#   sbatch launch/slurm_coco.sh [key=value ...]      for example: sbatch launch/slurm_coco.sh train.output=work_dirs/mine
#   sbatch --nodes=2 --gpus-per-node=2 launch/slurm_coco.sh
#
# Before its time limit, and when it is pre-empted, the job saves a checkpoint, is requeued and continues later.
# Several nodes must share the file system.
#SBATCH --job-name=afa_coco
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=afa_coco_%j.log
#SBATCH --signal=B:USR1@300
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the folder of the repository}"
PATH="${AFA_VENV:-$PWD/.venv}/bin:$PATH"
source launch/distributed.sh

afa_train_slurm configs/coco.yaml 8 "$@"
