#!/usr/bin/env bash
# Runs one study on this machine, in one process or in several that find each other over the loopback interface.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: launch/local.sh [--dry-run] [--processes N] [--grace SECONDS] CONFIG WORKDIR [FLAGS of tll_jax.main...]

  --dry-run          print what would run, and stop
  --processes N      number of processes (1); each sees all devices of the machine, or JAX_NUM_CPU_DEVICES virtual ones
  --grace SECONDS    time for the others to stop after one has stopped before its end (60)

One process uses all devices; several are for trying out a run on many machines. Process 0 writes to the terminal;
lines of the others begin with their number. Ctrl-C and SIGTERM reach all processes: they save, and the exit status is
75. The same command again continues. If this script itself is killed, they save and stop as well.
USAGE
}
show() { printf '%q' "$1" && printf ' %q' "${@:2}" && echo; }

dry_run='' processes=1 grace=60
while [[ ${1-} == -* ]]; do
  case $1 in
    --help) usage && exit ;;
    --dry-run) dry_run=yes && shift ;;
    --processes) processes=${2?how many processes?} && shift 2 ;;
    --grace) grace=${2?how many seconds?} && shift 2 ;;
    *) echo "launch/local.sh: there is no option $1; flags of tll_jax.main follow CONFIG and WORKDIR" >&2 && exit 2 ;;
  esac
done
for number in "$processes" "$grace"; do
  if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
    echo "launch/local.sh: --processes and --grace take a whole number of at least 1, not '$number'" >&2
    exit 2
  fi
done
if [ $# -lt 2 ]; then
  usage >&2
  exit 2
fi
command=(python -m tll_jax.main --config="$1" --workdir="$2" "${@:3}")

if [ "$processes" -eq 1 ]; then
  if [ -n "$dry_run" ]; then
    show "${command[@]}"
    exit
  fi
  exec "${command[@]}"
fi

port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
command+=(--coordinator="127.0.0.1:$port" --num_processes="$processes")
if [ -n "$dry_run" ]; then
  for ((rank = 0; rank < processes; rank++)); do
    show "${command[@]}" --process_id="$rank"
  done
  exit
fi

# A watcher that outlives this script: if the script is killed, it signals the processes to save and stop. It reads
# their process ids, and "end" at the script's normal end.
watch() {
  trap '' INT TERM HUP PIPE
  local word started=()
  while read -r word; do
    [ "$word" != end ] || exit 0
    started+=("$word")
  done
  [ ${#started[@]} -gt 0 ] || exit 0
  echo "launch/local.sh has been killed: its processes save and stop" >&2 || true
  kill -s TERM "${started[@]}" 2>/dev/null || exit 0
  for ((second = 0; second < grace; second++)); do
    sleep 1
    kill -0 "${started[@]}" 2>/dev/null || exit 0
  done
  kill -s KILL "${started[@]}" 2>/dev/null || true
}

prefixed() {
  exec 9>&-
  trap '' INT TERM HUP # It lasts as long as the process whose lines it reads.
  while IFS= read -r line; do printf '[process %s] %s\n' "$1" "$line"; done >&2
}

# Own process groups, by job control: otherwise Ctrl-C would reach the processes twice, from the terminal and from here,
# and the second signal ends a process that is still saving.
set -m
# The watcher is in its own group as well, and only this script keeps its input open.
exec 9> >(
  set -m
  watch <&0 &
)
# shellcheck disable=SC2016
numbered=(sh -c 'echo $$ >&9 && exec "$@" 9>&-' sh "${command[@]}")
running=()
for ((rank = 0; rank < processes; rank++)); do
  if [ "$rank" -eq 0 ]; then
    "${numbered[@]}" --process_id=0 </dev/null &
  else
    "${numbered[@]}" --process_id="$rank" </dev/null > >(prefixed "$rank") 2>&1 &
  fi
  running+=($!)
done
set +m

told=''
pass_on() {
  told=yes
  kill -s "$1" "${running[@]}" 2>/dev/null || true
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM HUP

# Polled, since `wait -n` does not say which process ended and is newer than the bash of macOS.
status=0 deadline=''
while [ ${#running[@]} -gt 0 ]; do
  sleep 0.2 || true
  still=()
  for process in "${running[@]}"; do
    if kill -0 "$process" 2>/dev/null; then
      still+=("$process")
      continue
    fi
    ended=0
    wait "$process" || ended=$?
    # The first failure causes the later ones; 75, stopped and saved, holds only if no process failed otherwise.
    if [ "$ended" -ne 0 ] && { [ "$status" -eq 0 ] || [ "$status" -eq 75 ]; }; then
      status=$ended
    fi
  done
  running=(${still[@]+"${still[@]}"})
  if [ "$status" -ne 0 ] && [ ${#running[@]} -gt 0 ]; then
    if [ -z "$deadline" ]; then
      deadline=$((SECONDS + grace))
      # Not after Ctrl-C: a second signal would end a process that is saving longer than the one that has stopped.
      [ -n "$told" ] || pass_on TERM
    elif [ "$SECONDS" -ge "$deadline" ]; then
      pass_on KILL
    fi
  fi
done
echo end >&9
exit "$status"
