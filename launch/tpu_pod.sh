#!/usr/bin/env bash
# A TPU slice of Google Cloud, one process a host. See launch/README.md.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/tpu_pod.sh [options] create | install | run | stop | delete

  launch/tpu_pod.sh --name=pdpo --zone=us-west4-a --type=v5litepod-16 \
    --runtime=v2-alpha-tpuv5-lite create
  launch/tpu_pod.sh --name=pdpo --zone=us-west4-a install -- \
    sudo mount --mkdir 10.0.0.2:/runs /mnt/runs
  launch/tpu_pod.sh --name=pdpo --zone=us-west4-a run -- \
    python -m pdpo_jax.main --config=configs/prism.py \
    --config.mesh.fsdp=16 --config.train.accumulation_steps=1 \
    --config.workdir=/mnt/runs/prism
  launch/tpu_pod.sh --name=pdpo --zone=us-west4-a delete

  create   asks for the slice; it is billed from when it is there
  install  copies the last commit to all hosts and installs what it needs; then
           runs a command on all, e.g. to mount the folder of the runs
  run      runs a command of this repository on all hosts as one
  stop     sends SIGTERM to it: it saves and ends
  delete   gives the slice back, which ends the bill

  --name=N     of the slice
  --zone=Z     of Google Cloud
  --type=T     for create, e.g. v5litepod-16, v5p-8, v6e-8
  --runtime=R  for create, e.g. v2-alpha-tpuv5-lite, v2-alpha-tpuv5,
               v2-alpha-tpuv6e
  --spot       for create: cheaper, and may be taken away
  --queued     for create: waits in a queue until there is room
  --dry-run    print the commands, and run nothing
  --help       this

Needs gcloud with a project and the right to make TPUs.
END
}

fail() {
  echo "error: $1; see launch/tpu_pod.sh --help" >&2
  exit 2
}

name='' zone='' type='' runtime='' spot='' queued='' dry_run='' action=''
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) spot=--spot ;;
    --queued) queued=1 ;;
    --dry-run) dry_run=1 ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    create | install | run | stop | delete) action=$1 ;;
    *) fail "unknown word $1" ;;
  esac
  shift
done
[[ -n $action ]] || fail 'say what to do: create, install, run, stop or delete'
[[ -n $name && -n $zone ]] || fail '--name and --zone are needed'

call() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
# Queued or not, the slice is a node of the same name.
tpus() { call gcloud compute tpus "$@" "--zone=$zone"; }
on_all() { tpus tpu-vm ssh "$name" --worker=all "--command=$1"; }

case $action in
  create)
    [[ -n $type && -n $runtime ]] || fail 'create needs --type and --runtime'
    what=("--accelerator-type=$type")
    [[ -z $spot ]] || what+=("$spot")
    if [[ -n $queued ]]; then
      tpus queued-resources create "$name" "--node-id=$name" "${what[@]}" \
        "--runtime-version=$runtime"
    else
      tpus tpu-vm create "$name" "${what[@]}" "--version=$runtime"
    fi
    ;;
  install)
    archive=$(mktemp -d)/pdpo_jax.tar.gz
    call git archive --format=tar.gz "--output=$archive" HEAD
    tpus tpu-vm scp "$archive" "$name:" --worker=all
    # The hosts come with an older Python than is needed.
    on_all 'set -e; mkdir -p pdpo_jax; tar -xzf pdpo_jax.tar.gz -C pdpo_jax
cd pdpo_jax; python3 -m pip install --quiet --user uv
python3 -m uv venv --allow-existing --python=3.12 .venv
python3 -m uv pip install --python=.venv -r requirements.txt "jax[tpu]"'
    if (($#)); then on_all "$(printf '%q ' "$@")"; fi
    ;;
  run)
    (($#)) || fail 'give a command after --'
    on_all "cd pdpo_jax && PATH=\$PWD/.venv/bin:\$PATH \
$(printf '%q ' "$@")--distributed"
    ;;
  stop) on_all 'pkill -TERM -f "[p]dpo_jax.*--distributed"' ;;
  delete)
    if [[ -n $queued ]]; then
      tpus queued-resources delete "$name" --force --quiet
    else
      tpus tpu-vm delete "$name" --quiet
    fi
    ;;
esac
