#!/usr/bin/env bash
# Functions of the scripts for TPU VMs: run a command on the hosts, and install the repository there.
#
# The scripts set dry_run, name and zone, and source this file.
#
# Tested: as the scripts that source it.
# shellcheck disable=SC2154  # dry_run, name and zone

files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT

run() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Without these flags, ssh waits for hours for a host that is down.
on() { # HOSTS COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --ssh-flag=-oConnectTimeout=15 \
    --ssh-flag=-oServerAliveInterval=30 --command="$2"
}

# Copy the committed files, and FILES, to all hosts, and install smallbatch in ~/smallbatch/.venv. The Python of TPU VMs
# may be too old, so uv installs one unless $PYTHON names one.
install() { # EXTRAS [FILES]
  local new_venv='python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --python=3.12'
  if [[ -n ${PYTHON:-} ]]; then
    new_venv="$PYTHON -m venv"
  fi
  run git archive --format=tar.gz --output="$files/smallbatch.tar.gz" HEAD &&
    run gcloud compute tpus tpu-vm scp "$files/smallbatch.tar.gz" "${@:2}" "$name:" --zone="$zone" --worker=all &&
    on all "mkdir -p smallbatch && tar -xzf smallbatch.tar.gz -C smallbatch &&
{ [ -x smallbatch/.venv/bin/pip ] || { $new_venv smallbatch/.venv; }; } &&
smallbatch/.venv/bin/pip install --quiet -e 'smallbatch[$1]'"
}
