#!/usr/bin/env bash
# PSA on PASCAL VOC 2012 under SLURM, on the GPUs of one node, as configs/psa/*.yaml say. Submit it from the folder of the
# repository, once .venv is there (bash launch/test.sh makes it).
#
#   sbatch launch/slurm_psa_voc.sh [key=value ...] [STAGE:key=value ...]      STAGE: cam, affinity, segment
#   sbatch --gpus-per-node=1 launch/slurm_psa_voc.sh train.output=work_dirs/mine
#
# Before its time limit, and when it is pre-empted, the job saves a checkpoint, is requeued and continues later.
#SBATCH --job-name=afa_psa_voc
#SBATCH --nodes=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=afa_psa_voc_%j.log
#SBATCH --signal=B:USR1@300
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the folder of the repository}"
PATH="${AFA_VENV:-$PWD/.venv}/bin:$PATH"
source launch/distributed.sh
source launch/pipeline.sh
source launch/psa.sh

pipeline_read work_dirs/psa cam affinity segment -- "$@"
pipeline_place slurm
afa_slurm_listen
code=0
psa_pipeline configs/psa/ "$pipeline_folder" || code=$?
afa_slurm_end "$code"
