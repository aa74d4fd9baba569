#!/bin/sh
# A canary on another machine, over ssh: sh remote.sh BOX MANIFEST. It ends with the exit code of deployctl there; 255 is ssh's own.
# The box reads manifest and models itself, so they are sent first; it needs `deployctl` on the PATH of a plain `ssh BOX command`.
set -eu
box=$1 manifest=$2
tar -cf - "$manifest" examples/digits/models | ssh "$box" 'mkdir -p rollouts && tar -xf - -C rollouts'

# Without a terminal a signal does not travel over ssh, so a cancelled job gives its order itself.
cancelled() {
  ssh "$box" "deployctl rollback digits --reason 'the job was cancelled'"
  exit 3
}
trap cancelled INT TERM
code=0
ssh "$box" "cd rollouts && deployctl canary ramp '$manifest' --timeout 40m --junit report.xml --markdown report.md" &
wait $! || code=$?
ssh "$box" 'cd rollouts && tar -cf - report.xml report.md' | tar -xf -
exit "$code"
