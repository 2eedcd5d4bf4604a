#!/usr/bin/env bash
# Run a smallbatch command in Slurm jobs that requeue themselves: a sweep shared by the tasks of an array, or a run on
# several nodes.
#
#   sbatch --array=1-8 --cpus-per-task=8 --time=4:00:00 launch/slurm.sh sweep --config=configs/quickstart_grid.py \
#       --workdir=/shared/sweeps/first
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --time=8:00:00 launch/slurm.sh train \
#       --config=configs/gpt3xl.py:adam1 --config.mesh.tensor=16 --config.data.cache_dir=/shared/cache \
#       --workdir=/shared/runs/first
#   launch/slurm.sh --dry_run train --config=...        print the commands and run none
#
# Submit it from the working directory, with the Python environment active. The directory, the environment, --workdir
# and the corpus must be on file systems that all nodes share. Prepare a large corpus first, with python -m
# smallbatch.prepare and the same --config flags; otherwise all GPUs wait for it.
#
# Array: every task runs the same sweep, and cell locks in --workdir distribute the cells. Any number of tasks can start
# at any time. For GPUs, request --gpus=1 per task. Several nodes: use one task per GPU, and request the GPUs with
# --gpus-per-node. In a Slurm step of several tasks, JAX assigns the n-th visible GPU to the n-th task of a node;
# --gpus-per-task would show each task one GPU only. On CPUs, use one task per node.
#
# Two minutes before the time limit the command saves and the job is requeued. Slurm also requeues preempted jobs. A job
# is requeued too after a preemption notice of the cloud (exit code 75). The log is appended to. scancel saves and ends
# the job. --time must be well over two minutes.
#
# Tested: Slurm 22.05 with one machine as two nodes, CPUs, no cgroups: an array of two tasks on a sweep of four cells,
# preempted three times, then cancelled; runs of one and of two processes, to the end, to a real time limit, with a
# killed process, and cancelled, with the losses of an uninterrupted run; three tasks of a stand-in for the command that
# exited with 75, requeued and run to the end. Never run on GPUs or on a cluster.
#
#SBATCH --job-name=smallbatch
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
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
if (($# == 0)) || [[ $1 == -* ]]; then
  echo "error: the command is missing; use sbatch [OPTIONS] launch/slurm.sh train --config=... --workdir=...," \
    "or sweep" >&2
  exit 2
fi
command=$1
shift
if [[ -z ${SLURM_JOB_ID:-}$dry_run ]]; then
  echo "error: this is not a Slurm job; submit it with sbatch, or use --dry_run" >&2
  exit 2
fi
tasks=${SLURM_TASKS_PER_NODE:-1} # such as 8(x2)
tasks=${tasks%%[(,]*}
if [[ $command == train ]] && ((${SLURM_NTASKS:-1} > 1 && ${SLURM_GPUS_ON_NODE:-$tasks} != tasks)); then
  echo "error: $tasks tasks and $SLURM_GPUS_ON_NODE GPUs per node; set --ntasks-per-node and --gpus-per-node to" \
    "the same number" >&2
  exit 2
fi

job=${SLURM_JOB_ID:-JOB}
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then # the job id of one task of an array can mean the whole array
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then # some versions of srun do not read it from sbatch
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
step=(srun --kill-on-bad-exit=1 python -m "smallbatch.$command" "$@")
save=(scancel --signal=TERM "$job") # signals the processes of the step; a SIGTERM to srun would kill them
requeue=(scontrol requeue "$job")

if [[ -n $dry_run ]]; then
  printf '%q ' "${step[@]}"
  printf '\n# before the time limit: '
  printf '%q ' "${save[@]}"
  printf '\n# after it has saved: '
  printf '%q ' "${requeue[@]}"
  echo
  exit 0
fi

time_is_up=
trap 'time_is_up=yes; echo "$(date +%T) the time limit is near: saving" >&2; "${save[@]}" || true' USR1
trap : TERM # scancel and preemption: Slurm signals the step; wait until it has saved
"${step[@]}" &
pid=$!
wait "$pid" || true
while kill -0 "$pid" 2>/dev/null; do # a signal ended the wait
  wait "$pid" || true
done
code=0
wait "$pid" || code=$? # bash keeps the exit code of the step if it ended while a signal was handled

# Slurm requeues a job that is preempted with a grace time only if it does not end within that time. Exit code 75: the
# cloud's preemption notice, which Slurm does not receive.
if [[ -n $time_is_up && $code == 0 || $code == 75 ]] || [[ $(scontrol show job "$job") == *PreemptTime=[0-9]* ]]; then
  "${requeue[@]}"
elif ((code != 0 && code != 2)); then
  echo "error: the command failed with exit code $code, see above; run sbatch again to resume from the last" \
    "checkpoint" >&2
fi
exit "$code"
