#!/usr/bin/env bash
# Run a sweep on a TPU VM of one or more hosts: install, start Ray on every host, run one cell per chip.
#
#   launch/ray_tpu_vm.sh NAME ZONE --config=configs/quickstart_grid.py --workdir=/mnt/shared/sweeps/first
#   launch/ray_tpu_vm.sh --dry_run NAME ZONE --config=...          print the commands and run none
#
# Run it in a clone of the repository, signed in to gcloud. It installs the committed files. The TPU VM must exist, and
# --workdir must be on a file system that all its hosts mount, such as NFS (Filestore). A bucket does not work: cell
# locks need file locks. After a preemption, create another TPU VM and run the same command.
#
# Tested: shellcheck and the dry run. Never run on a TPU VM.
set -euo pipefail

if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set/{/^set/d; s/^#$//; s/^# //; p}' "$0"
  exit 0
fi
dry_run=
if [[ ${1:-} == --dry_run ]]; then
  dry_run=yes
  shift
fi
if (($# < 2)) || [[ $1 == -* || $2 == -* ]]; then
  echo "error: NAME or ZONE is missing; use launch/ray_tpu_vm.sh [--dry_run] NAME ZONE --config=... --workdir=..." >&2
  exit 2
fi
name=$1 zone=$2
shift 2
port=${RAY_PORT:-6379}

# shellcheck source-path=SCRIPTDIR source=tpu_hosts.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu_hosts.sh"

# Anyone who can connect to a Ray cluster can run code on it, so a token is required.
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$files/auth_token")
if [[ -n $dry_run ]]; then
  head_ip=HEAD_IP
else
  head_ip=$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(networkEndpoints[0].ipAddress)')
fi

install tpu,ray "$files/auth_token"
on all "mkdir -p .ray && mv auth_token .ray/ && chmod 600 .ray/auth_token && smallbatch/.venv/bin/ray stop"

ray='RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 smallbatch/.venv/bin/ray start'
on 0 "$ray --head --port=$port --node-ip-address=$head_ip --include-dashboard=false"
on all "hostname -I | grep -qwF $head_ip || $ray --address=$head_ip:$port"
sweep=(python -m smallbatch.sweep --engine=ray --ray_address="$head_ip:$port" "$@")
on 0 "cd smallbatch && . .venv/bin/activate && RAY_AUTH_MODE=token exec $(printf '%q ' "${sweep[@]}")"
