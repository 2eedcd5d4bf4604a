#!/usr/bin/env bash
# Run a smallbatch command on all hosts of a TPU VM. The script creates the TPU VM, and again after each preemption.
#
#   launch/tpu_vm.sh --setup='mountpoint /mnt/runs || sudo mount -o X-mount.mkdir 10.0.0.2:/runs /mnt/runs' \
#       NAME ZONE v6e-16 --spot -- train --config=configs/gpt3xl.py:adam1 --config.mesh.tensor=16 \
#       --config.data.source='text:/mnt/runs/fineweb/sample/100BT/*.parquet' --config.data.cache_dir=/mnt/runs/cache \
#       --config.data.tokenizer=file:/mnt/runs/gpt2/tokenizer.json --workdir=/mnt/runs/first
#   launch/tpu_vm.sh --dry_run NAME ZONE v6e-16 -- train ...      print the commands and run none
#
# Run it in a clone of the repository, on a machine that stays connected and is signed in to gcloud. It installs the
# committed files. Options between the type and -- go to gcloud compute tpus queued-resources create. An existing TPU VM
# of this name is used as it is.
#
#   --setup=COMMAND      run this on every host first, to mount disks
#   --delete_when_done   delete the TPU VM when the command has succeeded; otherwise it stays and costs money
#
# After a preemption notice (exit code 75) the command restarts at once on the same host. After a usage error (exit code
# 2) this script ends. After any other failure it checks the state of the TPU VM. If the TPU VM was preempted
# (PREEMPTED, SUSPENDED or TERMINATED), the script deletes it, creates a new one and runs the same command there, which
# resumes. Rerun this script to resume after stopping it.
#
# --workdir, the corpus, its tokenizer and the cache must be on a file system that outlives the TPU VM and that --setup
# mounts at the same path on all hosts. For a sweep, use NFS such as Filestore. For train, a bucket mounted with gcsfuse
# also works if it has a hierarchical namespace, or with gcsfuse --rename-dir-limit=100000: checkpoints are completed by
# renaming a directory. Prepare a large corpus first, with python -m smallbatch.prepare and the same --config flags, on
# a machine that has the file system at the same path. Otherwise the TPUs wait, and in a bucket, where file locks do not
# reach other hosts, every host prepares it.
#
# A sweep uses the chips of one host. For several hosts, use ray_tpu_vm.sh.
#
# Tested: shellcheck, the dry run, and the whole script with a stand-in for gcloud. Never run on a TPU VM.
set -euo pipefail

dry_run='' setup='' delete_when_done=''
while [[ ${1:-} == --* ]]; do
  case $1 in
    --help)
      sed -n '2,/^set/{/^set/d; s/^#$//; s/^# //; p}' "$0"
      exit 0
      ;;
    --dry_run) dry_run=yes ;;
    --setup=*) setup=${1#*=} ;;
    --delete_when_done) delete_when_done=yes ;;
    *)
      echo "error: there is no option $1 before NAME; use --dry_run, --setup=COMMAND or --delete_when_done" >&2
      exit 2
      ;;
  esac
  shift
done
if (($# < 3)) || [[ $2 == -* || $3 == -* ]]; then
  echo "error: NAME, ZONE or TYPE is missing; use launch/tpu_vm.sh NAME ZONE TYPE [--spot] -- train --config=..." \
    "--workdir=..." >&2
  exit 2
fi
name=$1 zone=$2 type=$3
shift 3
options=()
while (($#)) && [[ $1 != -- ]]; do
  options+=("$1")
  shift
done
if (($# < 2)); then
  echo "error: the command is missing; write it after --, as in: -- train --config=... --workdir=..." >&2
  exit 2
fi
command=$2
shift 2
if [[ $command == @(train|sweep) && " $*" != *" --workdir"* ]]; then
  echo "error: --workdir is missing; give a directory on a mounted disk, because files on a TPU VM are lost with it" >&2
  exit 2
fi
if [[ -z $dry_run ]] && ! command -v gcloud >/dev/null; then
  echo "error: gcloud is not installed; install the Google Cloud CLI, or use --dry_run" >&2
  exit 2
fi
# shellcheck source-path=SCRIPTDIR source=tpu_hosts.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu_hosts.sh"

if [[ " ${options[*]}" != *" --runtime-version"* ]]; then
  case $type in
    v6e-*) options+=(--runtime-version=v2-alpha-tpuv6e) ;;
    v5p-*) options+=(--runtime-version=v2-alpha-tpuv5) ;;
    v5litepod-*) options+=(--runtime-version=v2-alpha-tpuv5-lite) ;;
    *) options+=(--runtime-version=tpu-ubuntu2204-base) ;;
  esac
fi
poll_secs=${POLL_SECS:-30}
log() { echo "$(date +%T) $*" >&2; }
create() {
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" --accelerator-type="$type" \
    "${options[@]}"
}
delete() { # a TPU VM that was created without a queued resource has none to delete
  run gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet ||
    run gcloud compute tpus tpu-vm delete "$name" --zone="$zone" --quiet
}
describe() { gcloud compute tpus "$1" describe "$name" --zone="$zone" --format="value($2)" 2>&1 || true; }
state() { # of the TPU VM, or of its queued resource; NONE, or gcloud's error
  local found
  found=$(describe tpu-vm state)
  if [[ $found == *NOT_FOUND* ]]; then found=$(describe queued-resources state.state); fi
  if [[ $found == *NOT_FOUND* ]]; then found=NONE; fi
  echo "$found"
}
wait_until_ready() {
  local found last=''
  while found=$(state) && [[ $found != READY ]]; do
    if [[ $found != "$last" ]]; then log "$name: $found"; fi
    last=$found
    case $found in
      NONE) create ;;
      PREEMPTED | SUSPENDED | TERMINATED) delete ;;
      FAILED | STOPPED)
        echo "error: $name is $found; see why with: gcloud compute tpus queued-resources describe $name" \
          "--zone=$zone, then delete or start it" >&2
        exit 1
        ;;
      *) sleep "$poll_secs" ;;
    esac
  done
}

# A command whose connection broke may still be running; it saves before the next one starts.
start="cd smallbatch && . .venv/bin/activate
pkill -TERM -f '^python -m smallbatch'
while pgrep -f '^python -m smallbatch' >/dev/null; do sleep 1; done
while $(printf '%q ' python -m "smallbatch.$command" "$@"); code=\$?; [ \$code = 75 ]; do sleep 1; done
exit \$code"
attempt() { # exit code 2 only from the command: tar, pip and uv also exit with 2 when a connection breaks
  if [[ -n $setup ]]; then on all "$setup" || return 1; fi
  install tpu || return 1
  on all "$start"
}

if [[ -n $dry_run ]]; then
  create
  attempt
  echo "# after a preemption, all of this again, after:"
  delete
  exit 0
fi
while true; do
  wait_until_ready
  code=0
  attempt || code=$?
  if ((code == 2)); then break; fi # a usage error fails on any TPU VM
  sleep "$poll_secs" # on a host that shuts down, a run saves and succeeds before the state of the TPU VM changes
  if [[ $(state) == READY ]]; then break; fi
  log "$name was preempted; the command resumes on a new TPU VM"
done
if ((code == 2)); then
  echo "error: the command has a usage error, see above; correct it and rerun this script" >&2
elif ((code != 0)); then
  echo "error: the command failed and the TPU VM still exists, see above; rerun this script to resume" >&2
elif [[ -n $delete_when_done ]]; then
  delete
  exit 0
fi
log "$name still exists and costs money; delete it with:" \
  "gcloud compute tpus queued-resources delete $name --zone=$zone --force"
exit "$code"
