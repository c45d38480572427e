#!/usr/bin/env bash
# From speech to the table of results, in one command that can be stopped and called again:
#
#     scripts/reproduce.sh [--smoke] DATA RESULTS [key=value ...]
#
# DATA holds train.csv and dev.csv (manifests of clean speech, no speaker in both), pairs.csv (a manifest of pairs) and
# noise/ (room sound). RESULTS gets the trainings, the scores, and table.md. Settings as key=value go to every training,
# such as precision=bfloat16 threads=1. --smoke goes through every step with tiny models, to see that it can be gone.
# What is complete is skipped, what was stopped goes on. PYTHON names the interpreter (default: python). Needs bash 4.4.
set -euo pipefail

# The recipe. Names are files of configs/, key=value are settings on top of them.
RESTORER=(restorer)                  # stage one, on simulated speech
VOCODER=(vocoder content)            # stage two, its content losses alone
ADAPT=()                             # stage one on the pairs, on top of `restorer adapt`; leave_one_out.py gets it too
SENSORS=any,eben                     # simulated there beside the sensor that is fitted, as leave_one_out.py does
SIMULATED=(throat eben)              # what the held-out speech is scored through
WEIGHTS=last.safetensors             # not best, which was chosen on the speech that is scored

smoke() { # the same steps, small; a second simulated sensor would be the same step again
  SETTINGS=(tiny steps=2 save_every=2 log_every=2 valid.every=2 valid.items=1)
  SCORES=(--limit 2 --pictures 0)
  SIMULATED=("${SIMULATED[0]}")
}

NAME=reproduce
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python}
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

fail() {
  echo "$NAME: error: $1" >&2
  exit "${2:-1}"
}

usage() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
}

# fail unless it is key=value, of a key that is not the recipe's own
check_setting() {
  case $1 in
    run_dir=* | init_from=* | data.train=* | data.valid=* | data.noise=* | data.sensors=*) fail "$1: is set by the recipe" 2 ;;
    =* | *[[:space:]]*=*) fail "$1: not key=value" 2 ;;
    *=*) ;;
    *) fail "$1: not key=value" 2 ;;
  esac
}

check_data() {
  local file
  [[ -d $1 ]] || fail "$1: no such folder"
  for file in train.csv dev.csv pairs.csv; do
    [[ -f $1/$file ]] || fail "$1/$file: no such file"
  done
  [[ -d $1/noise ]] || fail "$1/noise: no such folder"
}

check_python() {
  local needs=twostage,pesq,pystoi
  local code='import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1].split(","))))'
  command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: no such program"
  "$PYTHON" -c "$code" "$needs" || fail "PYTHON=$PYTHON: lacks one of $needs: pip install '.[eval]'"
}

twostage() {
  "$PYTHON" -m twostage "$@"
}

leave_one_out() {
  "$PYTHON" "$ROOT/scripts/leave_one_out.py" "$@"
}

# a command in one line, without the settings that do not decide what comes out
reproducible() {
  local word
  for word in "$@"; do
    case $word in
      threads=* | device=* | log_every=* | save_every=*) ;;
      *) printf '%q ' "$word" ;;
    esac
  done
}

# step NAME COMMAND...: run it unless it is complete; what is complete has its command in RESULTS/done/NAME
step() {
  local name=$1 mark=$RESULTS/done/$1 command
  shift
  command=$(reproducible "$@")
  if [[ -e $mark ]]; then
    [[ $(<"$mark") == "$command" ]] || fail "$mark: this step was made by another command; name another folder"
    echo "$NAME: $name: complete, skipped"
    return
  fi
  echo "$NAME: $name: $command"
  "$@"
  printf '%s\n' "$command" >"$mark.part"
  mv "$mark.part" "$mark"
}

# begun_or_not FOLDER COMMAND ...: a training, which goes on if one has begun in FOLDER
begun_or_not() {
  local folder=$1 more=()
  shift
  [[ ! -e $folder/config.yaml ]] || more=(--resume)
  twostage "$@" "${more[@]}"
}

# train NAME COMMAND ...: into RESULTS/NAME
train() {
  local name=$1 command=$2
  shift 2
  step "$name" begun_or_not "$RESULTS/$name" "$command" "$@" "data.valid=[$DATA/dev.csv]" "${SETTINGS[@]}" "run_dir=$RESULTS/$name"
}

train_all() {
  local noise=data.noise=$DATA/noise
  train base train-restorer "${RESTORER[@]}" "data.train=[$DATA/train.csv]" "$noise"
  train vocoder train-vocoder "${VOCODER[@]}" "data.train=[$DATA/train.csv]"
  step sensor twostage fit-sensor "$DATA/pairs.csv" -o "$RESULTS/sensor.yaml" --overwrite
  train restorer train-restorer restorer adapt "${ADAPT[@]}" "init_from=$BASE" "$noise" \
    "data.train=[$DATA/train.csv,$DATA/pairs.csv]" "data.sensors=[$RESULTS/sensor.yaml,$SENSORS]"
}

score_all() { # copy-synthesis is a row of every table
  local sensor
  step pairs leave_one_out --pairs "$DATA/pairs.csv" --clean "$DATA/train.csv" \
    --init "$BASE" --vocoder "$STAGE_TWO" --evaluate="${SCORES[*]}" -o "$RESULTS/pairs" \
    "${ADAPT[@]}" "data.noise=$DATA/noise" "${SETTINGS[@]}"
  for sensor in "${SIMULATED[@]}"; do
    step "$sensor" twostage evaluate --clean "$DATA/dev.csv" --simulate "$sensor" --group-by corpus \
      --model "two-stage=$RESULTS/restorer/$WEIGHTS" "$STAGE_TWO" -o "$RESULTS/$sensor" "${SCORES[@]}"
  done
}

# part TITLE FILE: a table under a title of ours
part() {
  printf '# %s\n' "$1"
  tail -n +2 "$2" # without its own
  echo
}

table() {
  local sensor
  part "Real pairs, each speaker by a restorer that has not heard it" "$RESULTS/pairs/all/table.md"
  for sensor in "${SIMULATED[@]}"; do
    part "Held-out speech, simulated: $sensor" "$RESULTS/$sensor/table.md"
  done
}

SETTINGS=() SCORES=() PLACES=() GIVEN=()
for text in "$@"; do
  case $text in
    -h | --help) usage && exit ;;
    --smoke) smoke ;;
    -*) fail "$text: no such option" 2 ;;
    *) if [[ ${#PLACES[@]} -lt 2 ]]; then PLACES+=("$text"); else GIVEN+=("$text"); fi ;;
  esac
done
[[ ${#PLACES[@]} -eq 2 ]] || fail "give DATA and RESULTS: scripts/reproduce.sh [--smoke] DATA RESULTS [key=value ...]" 2
for text in "${GIVEN[@]}"; do
  check_setting "$text"
done
SETTINGS+=("${GIVEN[@]}")
check_data "${PLACES[0]}"
check_python
mkdir -p "${PLACES[1]}/done" 2>/dev/null || fail "${PLACES[1]}: cannot make this folder"
DATA=$(cd "${PLACES[0]}" && pwd) RESULTS=$(cd "${PLACES[1]}" && pwd)
BASE=$RESULTS/base/$WEIGHTS STAGE_TWO=$RESULTS/vocoder/$WEIGHTS

train_all
score_all
table >"$RESULTS/table.md"
cat "$RESULTS/table.md"
