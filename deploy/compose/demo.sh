# What the service `demo` does: submit the demo's study, tell what happens, write a report per run into /reports.
# Ends with the status of the runs: 0 done, 1 one failed, 3 one is incomplete. Runs that are there already are not made
# again, so that `docker compose up` can be said twice.
set -eu
umask 0 # the reports belong to a user who is nobody outside this container
runs=$(locum runs --json |
  python -c 'import json, sys; print(*(run["run"] for run in json.load(sys.stdin)["runs"] if run["scenario"] == "demo"))')
[ -n "$runs" ] || runs=$(locum schedule /etc/locum/demo.yaml)
worst=0
for run in $runs; do
  status=0
  locum watch "$run" || status=$?
  [ "$worst" = 1 ] || [ "$status" = 0 ] || worst=$status
  locum report "$run"
done
exit "$worst"
