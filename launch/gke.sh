#!/usr/bin/env bash
# A TPU slice of GKE as a JobSet, one process a host. See launch/README.md.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/gke.sh [options] -- COMMAND...

  launch/gke.sh --image=REGISTRY/pdpo_jax --claim=runs \
    --accelerator=tpu-v5-lite-podslice --topology=4x4 --hosts=4 --chips=4 -- \
    python -m pdpo_jax.main --config=configs/prism.py \
    --config.mesh.fsdp=16 --config.train.accumulation_steps=1 \
    --config.workdir=/runs/prism

Fills in launch/gke_jobset.yaml and applies it.

  --image=I        has this repository as its working folder, and jax[tpu]
  --claim=C        a volume claim that all hosts may write; becomes /runs
  --accelerator=A  tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice
  --topology=T     of the slice: 4x4, 2x2x1, 2x4
  --hosts=H        of the slice
  --chips=K        of each host (4)
  --name=N         of the job (pdpo)
  --restarts=R     how often it is started again (100)
  --dry-run        print the manifest, and apply nothing
  --help           this

Needs kubectl, and a cluster with JobSet and a node pool of that slice.
END
}

fail() {
  echo "error: $1; see launch/gke.sh --help" >&2
  exit 2
}

declare -A values=([name]=pdpo [chips]=4 [restarts]=100)
dry_run=''
while (($#)); do
  case $1 in
    --name=* | --image=* | --claim=* | --accelerator=* | --topology=* | \
      --hosts=* | --chips=* | --restarts=*)
      option=${1%%=*}
      values[${option#--}]=${1#*=}
      ;;
    --dry-run) dry_run=1 ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
for option in image claim accelerator topology hosts; do
  [[ -n ${values[$option]:-} ]] || fail "--$option is needed"
done
(($#)) || fail 'give a command after --'

# As a list of JSON strings.
command=''
for word in "$@" --distributed --interrupted_status=75; do
  word=${word//\\/\\\\}
  command+="${command:+, }\"${word//\"/\\\"}\""
done
values[command]=$command

manifest=$(<"$(dirname "$0")/gke_jobset.yaml")
for option in "${!values[@]}"; do
  manifest=${manifest//"{$option}"/"${values[$option]}"}
done
if [[ -n $dry_run ]]; then
  echo "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
