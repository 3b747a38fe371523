#!/usr/bin/env bash
# Several processes on one machine that work as one. See launch/README.md.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/local.sh [options] -- COMMAND...

  launch/local.sh --processes=2 --devices=4 -- \
    python -m pdpo_jax.main --config=configs/quickstart.py

Starts COMMAND once for each process, with the flags that make them one.

  --processes=N  how many processes (2)
  --devices=D    simulated CPU devices of each; without, a process has the CPU
  --gpus=G       GPUs of each: process i gets i*G to i*G + G - 1
  --port=P       where process 0 listens (a free one)
  --dry-run      print the commands, and start nothing
  --help         this

SIGTERM and SIGINT go to all processes, as SIGTERM. The status is 0 if all end
with 0, else that of the process that ended worst.
END
}

processes=2 devices='' gpus='' port='' dry_run=''
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: unknown option $1; see launch/local.sh --help" >&2; exit 2 ;;
  esac
  shift
done
if ((!$#)); then
  echo 'error: give a command after --; see launch/local.sh --help' >&2
  exit 2
fi
if [[ -n $devices && -n $gpus ]]; then
  echo 'error: --devices is for CPUs and --gpus for GPUs; give one' >&2
  exit 2
fi
if [[ -z $port ]]; then
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi

# What is set for the process of number $1, and then its command.
environment_of() {
  if [[ -n $gpus ]]; then
    echo "CUDA_VISIBLE_DEVICES=$(seq -s, $(($1 * gpus)) $(($1 * gpus + gpus - 1)))"
  else
    echo 'JAX_PLATFORMS=cpu'
    if [[ -n $devices ]]; then
      local count=--xla_force_host_platform_device_count=$devices
      echo "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$count"
    fi
  fi
}

pids=() signalled=''
# What bash starts in the background is deaf to SIGINT.
trap 'signalled=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

for ((i = 0; i < processes; i++)); do
  mapfile -t environment < <(environment_of "$i")
  command=(env "${environment[@]}" "$@" --distributed
    "--coordinator=localhost:$port" "--num_processes=$processes"
    "--process_id=$i")
  if [[ -n $dry_run ]]; then
    printf '%q ' "${command[@]}"
    echo
    continue
  fi
  # Lines of progress bars end with a carriage return.
  "${command[@]}" > >(stdbuf -oL tr '\r' '\n' | sed -u "s/^/[$i] /") 2>&1 &
  pids+=("$!")
done

worst=0
for pid in "${pids[@]}"; do
  # A signal that was passed on has interrupted the wait.
  while
    status=0 signalled=''
    wait "$pid" || status=$?
    [[ -n $signalled ]] && ((status > 128))
  do :; done
  if ((status > worst)); then worst=$status; fi
done
exit "$worst"
