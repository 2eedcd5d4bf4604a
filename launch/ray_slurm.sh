#!/usr/bin/env bash
# Run a sweep on the nodes of a Slurm job: a Ray cluster for as long as the job, then the sweep on it.
#
#   sbatch --nodes=4 --time=8:00:00 launch/ray_slurm.sh --config=configs/quickstart_grid.py --workdir=/shared/sweeps/first
#   launch/ray_slurm.sh --dry_run --config=...      print what it would do; outside of a job, for two made-up nodes
#
# Submit it from the directory to run in, with Python's environment active. Directory, environment, home and --workdir
# must be on file systems that all nodes see. The same command goes on where a job ended: three minutes before its time
# is up, Slurm tells the sweep to save. For GPUs, add --gpus-per-node=N and install their JAX.
#
# Tried: shellcheck, the dry run, and all of it on one machine with stand-ins for srun and scontrol. Not on Slurm itself.
#
#SBATCH --job-name=smallbatch-sweep
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@180
set -euo pipefail

if [[ ${1:-} == --help ]]; then
  sed -n '2,/^#SBATCH/{/^#SBATCH/d; s/^#$//; s/^# //; p}' "$0"
  exit 0
fi
dry_run=
if [[ ${1:-} == --dry_run ]]; then
  dry_run=yes
  shift
fi

if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
elif [[ -n $dry_run ]]; then
  nodes=(node1 node2)
else
  echo "error: this is no Slurm job; submit it with sbatch, or see what it does with --dry_run" >&2
  exit 2
fi

# Whoever reaches a Ray cluster can run anything on it: only holders of the token may, which lies in the shared home.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
address=${nodes[0]}:${RAY_PORT:-6379}
workers=${nodes[*]:1}
# Ray counts the cores of the machine; the job may have fewer. Slurm would bind a single task to one core.
step=(srun --nodes=1 --ntasks=1 --overlap --cpu-bind=none)
# shellcheck disable=SC2016  # to be expanded on the node
on_node='exec ray start --block --num-cpus="$SLURM_CPUS_ON_NODE" "$@"'

show() {
  printf '%q ' "$@"
  echo
}
start() { # in the background; $! is the command itself, so that signals reach it
  if [[ -n $dry_run ]]; then show "$@"; else "$@" & fi
}
trap 'kill -TERM $(jobs -p) 2>/dev/null || true; wait' EXIT

if [[ -n $dry_run ]]; then show ray get-auth-token --generate; else ray get-auth-token --generate >/dev/null; fi
start "${step[@]}" --nodelist="${nodes[0]}" bash -c "$on_node" - --head --port="${address#*:}" --include-dashboard=false
if [[ -n $dry_run ]]; then
  show ray health-check --address="$address"
else
  tries=60
  until ray health-check --address="$address" 2>/dev/null; do
    if ((--tries == 0)); then
      echo "error: the head of the Ray cluster did not start on ${nodes[0]}" >&2
      exit 1
    fi
    sleep 5
  done
fi
for node in $workers; do # those that are late join the sweep when they come
  start "${step[@]}" --nodelist="$node" bash -c "$on_node" - --address="$address"
done
sweep=(python -m smallbatch.sweep --engine=ray --ray_address="$address" "$@")
start "${sweep[@]}"
if [[ -n $dry_run ]]; then
  exit 0
fi

pid=$!
trap 'kill -TERM "$pid" 2>/dev/null || true' TERM
code=0
wait "$pid" || code=$?
if kill -0 "$pid" 2>/dev/null; then # told to stop: it saves
  code=0
  wait "$pid" || code=$?
fi
exit "$code"
