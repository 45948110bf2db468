#!/usr/bin/env bash
# Everything that waits for an accelerator, in order of value, in resumable steps of under nine minutes each.
#
#   benchmarks/accelerator.sh            list the steps
#   benchmarks/accelerator.sh STEP...    run some of them; results go to $OUT (runs/accelerator by default)
#
# A step that trains goes on from the checkpoint in $OUT/mini or $OUT/mini-tiled, so it can be run again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/accelerator}
python=${PYTHON:-python3}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
mkdir -p "$out"

tests()    { "$python" -m pytest -q tests/gpu -p no:cacheprovider -p no:xdist 2>&1 | tee "$out/gpu-tests.txt"; }
train()    { "$python" -m topv.mini.train --preset accelerator --out "$out/mini" --minutes 8 2>&1 | tail -n 50; }
train_tiled() { "$python" -m topv.mini.train --preset tiled-accelerator --out "$out/mini-tiled" --minutes 8 2>&1 \
               | tail -n 50; }
accuracy() { "$python" benchmarks/accuracy.py --device cuda --questions 2000 --batch-size 256 --processes 4 \
               --work "$out/accuracy" --out "$out/accuracy.md"; }
compare()  { "$python" -m topv compare --device cuda --report "$out/report.html"; }
bench()    { "$python" -m topv bench --preset "$1" --device cuda --dtype bfloat16 "${@:3}" --out "$out/bench-$2.csv"; }
prefill()  { bench llava-1.5-7b llava --batch 1 4 16 --keep 0.5 0.25 0.1
             bench internvl2-2b internvl2 --batch 1 4 16 --keep 0.5 0.25 0.1; }
compiled() { for preset in llava-1.5-7b internvl2-2b; do
                 "$python" benchmarks/compiled.py --preset "$preset" --device cuda --dtype bfloat16 \
                     --mode reduce-overhead --steps 32 --rounds 11 --out "$out/compiled-$preset.csv"
             done; }
throughput() { bench llava-1.5-7b llava-24gib --memory-gib 24 --keep 0.5 --methods topv,fastv
               bench internvl2-2b internvl2-24gib --memory-gib 24 --keep 0.5 --methods topv,fastv; }
selection() { "$python" benchmarks/selection.py --parts device --device cuda --dtype bfloat16 --rounds 50 \
               --out "$out/selection.csv"; }
presets()  { for preset in llava-1.5-13b internvl2-8b qwen2.5-vl-7b qwen3-vl-8b; do
                 bench "$preset" "$preset" --batch 1 16 --keep 0.5 --rounds 7
             done; }

steps="tests train train_tiled accuracy compare selection prefill compiled throughput presets"
if [ $# -eq 0 ]; then
    echo "steps: $steps"
    exit 0
fi
for step in "$@"; do
    case " $steps " in
        *" $step "*) echo "== $step"; "$step" ;;
        *) echo "unknown step '$step'; expected some of: $steps" >&2; exit 2 ;;
    esac
done
