#!/usr/bin/env bash
# Everything that waits for an accelerator, in order of value, in resumable steps of under nine minutes each.
#
#   benchmarks/accelerator.sh            list the steps
#   benchmarks/accelerator.sh STEP...    run some of them
#
# Results and checkpoints go to $WORK (runs/accelerator by default). A training goes on from its checkpoint there, so
# three runs of `train` on one machine are one training of $TRAIN_MINUTES (22 by default). Where $OUT is set, all that
# $WORK holds but the checkpoints is packed there at the end, in pieces of 15 MiB: `cat results.tar.gz.* | tar -xz`.
# Where a machine is lost in between, go on from what came back: START=FOLDER of the weights.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-runs/accelerator}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
minutes=${TRAIN_MINUTES:-22}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
mkdir -p "$work"

tests()    { "$python" -m pytest -q tests/gpu -p no:cacheprovider -p no:xdist 2>&1 | tee "$work/gpu-tests.txt"; }
learn()    { "$python" -m training.train --preset "$1" --out "$work/$2" --minutes "$minutes" --run-minutes 7.5 \
                 ${START:+--start "$START"} 2>&1 | tee -a "$work/$2.txt"
             "$python" -m training.train --preset "$1" --out "$work/$2" --plot
             "$python" -m training.train --preset "$1" --out "$work/$2" --export "$work/$2-weights"
             cp "$work/$2"/{log.csv,curves.png,last.json} "$work/$2-weights"; }
train()    { learn accelerator mini; }
train_tiled() { learn tiled-accelerator mini-tiled; }
ask()      { "$python" -m topv eval --methods none --blind --model "$work/$1-weights" --device "$device" \
                 --dtype float32 --questions 2000 --batch-size 256 --work "$work/score-$1" --out "$work/score-$1.md"; }
score()    { ask mini; }
score_tiled() { ask mini-tiled; }
accuracy() { "$python" benchmarks/accuracy.py --device "$device" --questions 2000 --batch-size 256 --processes 4 \
                 --work "$work/accuracy" --out "$work/accuracy.md"; }
compare()  { "$python" -m topv compare --device "$device" --report "$work/report.html"; }
bench()    { "$python" -m topv bench --preset "$1" --device "$device" --dtype bfloat16 "${@:3}" \
                 --out "$work/bench-$2.csv"; }
prefill()  { bench llava-1.5-7b llava --batch 1 4 16 --keep 0.5 0.25 0.1
             bench internvl2-2b internvl2 --batch 1 4 16 --keep 0.5 0.25 0.1; }
compiled() { for preset in llava-1.5-7b internvl2-2b; do
                 "$python" benchmarks/compiled.py --preset "$preset" --device "$device" --dtype bfloat16 \
                     --mode reduce-overhead --steps 32 --rounds 11 --out "$work/compiled-$preset.csv"
             done; }
throughput() { bench llava-1.5-7b llava-24gib --memory-gib 24 --keep 0.5 --methods topv,fastv
               bench internvl2-2b internvl2-24gib --memory-gib 24 --keep 0.5 --methods topv,fastv; }
selection() { "$python" benchmarks/selection.py --parts device --device "$device" --dtype bfloat16 --rounds 50 \
                  --out "$work/selection.csv"; }
presets()  { for preset in llava-1.5-13b internvl2-8b qwen2.5-vl-7b qwen3-vl-8b; do
                 bench "$preset" "$preset" --batch 1 16 --keep 0.5 --rounds 7
             done; }
bring()    { [ -z "${OUT:-}" ] && return
             mkdir -p "$OUT"
             tar -cz -C "$work" --exclude=best --exclude='last.safetensors*' . | split -b 15M - "$OUT/results.tar.gz."; }

steps="tests train train_tiled score score_tiled accuracy compare selection prefill compiled throughput presets"
if [ $# -eq 0 ]; then
    echo "steps: $steps"
    exit 0
fi
for step in "$@"; do
    case " $steps " in
        *" $step "*) ;;
        *) echo "unknown step '$step'; expected some of: $steps" >&2; exit 2 ;;
    esac
done
trap bring EXIT
for step in "$@"; do
    echo "== $step"
    "$step"
done
