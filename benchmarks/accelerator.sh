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
accuracy() { "$python" -m topv eval --device cuda --questions 2000 --batch-size 256 \
               --out "$out/accuracy.md" --json "$out/accuracy.json"; }
compare()  { "$python" -m topv compare --device cuda --report "$out/report.html"; }
prefill()  { "$python" benchmarks/prefill.py --device cuda --dtype bfloat16 --layers 32 --width 4096 \
               --out "$out/prefill.csv"; }

steps="tests train train_tiled accuracy compare prefill"
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
