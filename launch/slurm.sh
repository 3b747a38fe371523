#!/usr/bin/env bash
# Nodes with GPUs under Slurm, one process a GPU. See launch/README.md.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/slurm.sh [options] -- COMMAND...

  launch/slurm.sh --nodes=2 --gpus=8 -- \
    python -m pdpo_jax.main --config=configs/prism.py \
    --config.mesh.fsdp=16 --config.train.accumulation_steps=1 \
    --config.workdir=/shared/runs/prism

Submits COMMAND as a job that saves before its time is up, goes on in the queue,
and starts again where it was.

  --nodes=N    nodes (1)
  --gpus=G     GPUs of each, and so processes (8)
  --cpus=C     CPU cores of each process (8)
  --time=T     of one start, as sbatch has it (24:00:00)
  --name=N     of the job (pdpo)
  --dry-run    print the job's script, and submit nothing
  --help       this

sbatch reads SBATCH_PARTITION, SBATCH_ACCOUNT and others from the environment.
END
}

nodes=1 gpus=8 cpus=8 time=24:00:00 name=pdpo dry_run=''
while (($#)); do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --cpus=*) cpus=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: unknown option $1; see launch/slurm.sh --help" >&2; exit 2 ;;
  esac
  shift
done
if ((!$#)); then
  echo 'error: give a command after --; see launch/slurm.sh --help' >&2
  exit 2
fi

# Each process sees all GPUs of its node, and takes the one of its own number.
script="#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

status=0
srun --cpus-per-task=$cpus --label $(printf '%q ' "$@")--distributed --interrupted_status=75 || status=\$?
# Saved, and not at its end.
if ((status == 75)); then exec scontrol requeue \"\$SLURM_JOB_ID\"; fi
exit \"\$status\""

if [[ -n $dry_run ]]; then
  echo "$script"
else
  sbatch <<<"$script"
fi
