"""Trials of long work: memory must not grow over 5,000 steps or 200 measured points. Each has its own interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from attempts import KINDS, Attempt, Try

MIB = 2**20
#: How much more memory the second half of the work may take than the first: the rows of its table, and what settles.
GROWTH = 3 * MIB
#: One arena for all threads, and Arrow's memory in it. Each thread that writes a checkpoint would otherwise get one of
#: many, which grow by tens of MiB before they settle, and nothing could be seen beside that.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
STEPS, POINTS = 5000, 200
SETTINGS = {
    "dln": {"depth": 6, "dimension": 8, "samples": 200, "lr": 1e-5},
    "vgg": {"width": 0.03, "batch_size": 8, "eval_every": STEPS},
}


@dataclass(frozen=True)
class Long:
    """A trial: a training of STEPS steps, or a measurement at POINTS points."""

    problem: str
    kind: str

    def prepare(self, folder: Path) -> Attempt:
        folder.mkdir(parents=True)

        def attempt(number: int) -> Try:
            begun = time.monotonic()
            words = [sys.executable, __file__, self.problem, self.kind, str(number)]
            ended = subprocess.run(words, cwd=folder, env=os.environ | ALLOCATOR, text=True, capture_output=True)
            taken = time.monotonic() - begun
            if ended.returncode:
                return Try("", "", ended.stderr[-600:], taken, 0)
            looks = json.loads(ended.stdout)
            growth = max(looks[len(looks) // 2 :]) - max(looks[: len(looks) // 2])
            fault = f"grew by {growth / MIB:.1f} MiB" if growth > GROWTH else ""
            what = f"{len(looks)} looks, from {looks[0] / MIB:.0f} to {looks[-1] / MIB:.0f} MiB"
            return Try(what, "same result", fault, taken, growth)

        return attempt


LONG = {
    f"{kind}, {problem}": Long(problem, kind)
    for problem, kinds in (("dln", ("train", *KINDS)), ("vgg", ("train", "landscape", "smoothness", "ics")))
    for kind in kinds
}


def main(problem: str, kind: str, seed: str) -> None:
    """Do the work; print the resident memory in bytes at each look, from a tenth of the work on."""
    import torch

    import bnsmooth_cli as bns
    from bnsmooth_cli.measures.measuring import measure
    from bnsmooth_cli.storage.runs import open_source

    torch.set_num_threads(1)
    looks = []

    def look(done: int, total: int) -> None:
        if done >= total / 10:
            looks.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    steps = STEPS if kind == "train" else POINTS - 1
    path = Path(f"run-{seed}")
    bns.train(
        problem, "batch", steps=steps, save_every=100, seed=int(seed), output=path, **SETTINGS[problem],
        progress=(lambda step, loss: look(step, steps)) if kind == "train" else None,
    )  # fmt: skip
    if kind != "train":
        measure(kind, [open_source(path)], every=1, progress=lambda run, step, done, total: look(done, total))
    print(json.dumps(looks))


if __name__ == "__main__":
    main(*sys.argv[1:])
