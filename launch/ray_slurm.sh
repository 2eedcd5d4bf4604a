#!/usr/bin/env bash
# Run a sweep on the nodes of a Slurm job: start a Ray cluster for the duration of the job, and the sweep on it.
#
#   sbatch --nodes=4 --time=8:00:00 launch/ray_slurm.sh --config=configs/quickstart_grid.py \
#       --workdir=/shared/sweeps/first
#   launch/ray_slurm.sh --dry_run --config=...      print the commands; outside a job, for two nodes node1 and node2
#
# Submit it from the working directory, with the Python environment active. The directory, the environment, the home
# directory and --workdir must be on file systems that all nodes share. Three minutes before the time limit, Slurm sends
# a signal and the sweep saves; submit the same command again to resume. For GPUs, add --gpus-per-node=N and install JAX
# for GPUs.
#
# Tested: shellcheck, the dry run, and the whole script on one machine with stand-ins for srun and scontrol. Never run
# on a Slurm cluster.
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
  echo "error: this is not a Slurm job; submit it with sbatch, or use --dry_run" >&2
  exit 2
fi

# Anyone who can connect to a Ray cluster can run code on it, so a token is required. It is in the shared home.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
address=${nodes[0]}:${RAY_PORT:-6379}
workers=${nodes[*]:1}
# Ray counts the cores of the machine, and the job may have fewer. Slurm binds a single task to one core by default.
step=(srun --nodes=1 --ntasks=1 --overlap --cpu-bind=none)
# shellcheck disable=SC2016  # expanded on the node
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
for node in $workers; do # a node that starts late joins the sweep
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
if kill -0 "$pid" 2>/dev/null; then # stopped by a signal: it saves
  code=0
  wait "$pid" || code=$?
fi
exit "$code"
