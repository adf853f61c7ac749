#!/bin/sh
# Runs a job inside a cluster, or goes on with it where an earlier attempt stopped:
#   sh jobs/cluster/start.sh NAME JOB [KEY.PATH=VALUE]...
#   ray job submit ... -- sh jobs/cluster/start.sh NAME JOB [KEY.PATH=VALUE]...
#
# NAME is this one job's: its runs are in $SHARED/runs/NAME, and a second start under the same name resumes
# the last of them. Teachers and their recorded outputs are shared by all jobs. SHARED is the folder that
# all nodes mount; MLFLOW_TRACKING_URI, where it is set, says where runs are recorded.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: sh $0 NAME JOB [KEY.PATH=VALUE]..." >&2
    exit 2
fi
shared=${SHARED:-/shared}
runs=$shared/runs/$1
shift
for run in "$runs"/*/latest; do
    if [ -e "$run/state.json" ]; then
        exec agrekd resume "$run"
    fi
done
exec agrekd run "$@" ray.address=auto "runs=$runs" "teachers.store=$shared/teachers" \
    "outputs.store=$shared/outputs" ${MLFLOW_TRACKING_URI:+"tracking.uri=$MLFLOW_TRACKING_URI"}
