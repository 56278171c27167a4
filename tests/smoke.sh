#!/usr/bin/env bash
# What an installed bnsmooth has to do, once through: `bash tests/smoke.sh`, in a minute. It writes into a folder of its own.
set -euo pipefail
cd "$(mktemp -d)"
export OMP_NUM_THREADS=1
set -x
bnsmooth --help
bnsmooth env
bnsmooth train --norm l1 --steps 20 --width 0.0625 --batch-size 16 -o run
bnsmooth landscape run --at 0,20
bnsmooth smoothness run --at 0,20
bnsmooth spectrum run --at 20
bnsmooth plot run/landscape.parquet -o landscape.png
bnsmooth compare --problem dln --norms none,batch --dimension 4 --samples 40 --steps 20 --measure smoothness,ics --jobs 2 -o study
bnsmooth report study -o report.html
test -s landscape.png
test -s report.html
