#!/usr/bin/env bash
# Every page and picture whose figures hang on the bundled weights, made again: run it after they change.
#
#   benchmarks/bundled.sh            list the steps
#   benchmarks/bundled.sh STEP...    run some of them, or `all`
#
# Hours on two processor cores. Answers are kept under $WORK (runs/bundled by default), so that a step that was cut short
# goes on; those of other weights are refused there. What the README, the model cards and the text of the book say of
# these figures is written by hand.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-runs/bundled}
python=${PYTHON:-python3}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$work"

cards()      { for model in mini tiled; do
                   "$python" -m topv eval --methods none --blind --model "$model" --questions 300 \
                       --work "$work/card-$model" --out "$work/card-$model.md"
               done; }
accuracy()   { "$python" benchmarks/accuracy.py --questions "${QUESTIONS:-200}" --processes "${PROCESSES:-2}" \
                   --work "$work/accuracy"; }
ablations()  { for model in mini tiled; do
                   "$python" -m topv ablate all --model "$model" --work "$work/ablations/$model" \
                       --out "docs/results/ablations-$model.md" --plot "docs/results/ablations-$model"
               done; }
foreground() { "$python" benchmarks/foreground.py --out docs/results/foreground.md; }
quantization() { "$python" benchmarks/quantization.py --work "$work/quantization" \
                     --out docs/results/quantization.md --plot docs/results/quantization.png; }
video()      { "$python" -m topv eval --model tiled --frames 4 --questions 20 --reductions 0.75,0.8 \
                   --methods random:budget=sample,uniform:budget=image,topv:budget=image,topv:budget=sample,framedifference:budget=image,framedifference \
                   --work "$work/video" --out docs/results/video.md --plot docs/results/video.png; }
compact()    { "$python" -m topv eval --methods topv,topv:compact_early_layers=true --reductions 0.5 --questions 60 \
                   --no-foreground --out docs/results/compact-early-layers.md; }
pictures()   { "$python" docs/make_pictures.py; }

steps="cards accuracy ablations foreground quantization video compact pictures"
if [ $# -eq 0 ]; then
    echo "steps: $steps"
    exit 0
fi
[ "$*" = all ] && set -- $steps
for step in "$@"; do
    case " $steps " in
        *" $step "*) ;;
        *) echo "unknown step '$step'; expected some of: $steps" >&2; exit 2 ;;
    esac
done
for step in "$@"; do
    echo "== $step"
    "$step"
done
