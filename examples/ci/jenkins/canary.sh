#!/bin/sh
# A canary for any pipeline that has a shell: sh canary.sh MANIFEST. It ends with the exit code of deployctl.
# --up starts the service where it does not run; it outlives this script.
set -eu
exec deployctl canary ramp "$1" --up --timeout 40m --rollback-on-cancel --junit report.xml --markdown report.md
