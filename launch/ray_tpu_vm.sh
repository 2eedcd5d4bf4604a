#!/usr/bin/env bash
# Run a sweep on a TPU VM of one or more hosts: install, start Ray on every host, run a cell a chip.
#
#   launch/ray_tpu_vm.sh NAME ZONE --config=configs/quickstart_grid.py --workdir=/mnt/shared/sweeps/first
#   launch/ray_tpu_vm.sh --dry_run NAME ZONE --config=...          print what it would do
#
# Run it in a clone of the repository, where gcloud is signed in; what is committed is installed. The TPU VM must be there,
# and --workdir on a file system that all its hosts have mounted (NFS such as Filestore; not a bucket: claims need locks).
# When the VM was taken away, make another and run the same command.
#
# Tried: shellcheck and the dry run. Not on TPU VMs.
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
  echo "error: which TPU VM? write launch/ray_tpu_vm.sh [--dry_run] NAME ZONE --config=... --workdir=..." >&2
  exit 2
fi
name=$1 zone=$2
shift 2
port=${RAY_PORT:-6379}

# shellcheck source-path=SCRIPTDIR source=tpu_hosts.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu_hosts.sh"

# Whoever reaches a Ray cluster can run anything on it: only holders of this token may.
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
