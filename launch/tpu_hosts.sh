#!/usr/bin/env bash
# What the scripts for TPU VMs share: a command on all hosts of one, and the repository installed there.
#
# It starts nothing by itself: they set dry_run, name and zone, and source it.
#
# Tried: as the scripts that source it.
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

# Without its flags ssh would wait for hours for a host that is gone.
on() { # HOSTS COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --ssh-flag=-oConnectTimeout=15 \
    --ssh-flag=-oServerAliveInterval=30 --command="$2"
}

# Copy what is committed, and FILES, to all hosts; install it in ~/smallbatch/.venv. The Python of TPU VMs may be too
# old: unless $PYTHON names one there, uv brings one.
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
