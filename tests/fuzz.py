"""Fuzz the reader of coded matrices: ``python tests/fuzz.py --inputs 100000 --seed 0 --seconds 300``.

Valid blobs of every scheme are damaged in many ways, most of them with every checksum made right again, and given to
``storage.blobs.unpack``. It may return a coded matrix or raise BadArtifact, in one line. Anything else, memory beyond
twice the content (integers and the weights they stand for) and inputs that take long are failures, each printed with
what reproduces it. Input N of a seed is always the same; one that never ends lies in the thousand named last.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from fuzz_cases import Case, make_case, valid_blobs
from isthmus.errors import BadArtifact
from isthmus.storage import entropy
from isthmus.storage.blobs import unpack
from isthmus.storage.coded import decode

SPARE_BYTES = 1 << 20
"""Memory that any input may take; beyond it, `TIMES` the content."""
TIMES = 2.0
SLOW_SECONDS = 2.0
"""Processor time that any input may take; the slowest takes a twentieth of it."""
GROWTH_BYTES = 64 << 20
"""By how much the whole process may grow over a run: what the entropy coder takes is seen here only."""


@dataclass
class Tally:
    """What came of the inputs so far."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: float = 0.0
    failures: list[str] = field(default_factory=list)


def content_bytes(case: Case) -> float:
    """Return the bytes of a matrix of the case's shape as integers and floats, or of all that its bytes can hold."""
    least_bits = 16 - np.log2(entropy.MOST_FREQUENT)
    return 8.0 * min(case.shape[0] * case.shape[1], (8 * len(case.data) + 128) / least_bits)


def check(case: Case) -> tuple[str, float, float]:
    """Give a case to the reader, and return what came of it, processor seconds, and bytes of memory at the peak."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    started = time.process_time()
    coded, outcome = None, ""
    try:
        coded = unpack(case.data, case.shape)
    except BadArtifact as error:
        outcome = "refused" if "\n" not in str(error) else "FAILED: more than a line"
    except Exception as error:
        outcome = f"FAILED: {type(error).__name__}: {error}"
    seconds, peak = time.process_time() - started, float(tracemalloc.get_traced_memory()[1] - before)
    if coded is not None:
        outcome = type(coded).__name__
        with np.errstate(all="ignore"):
            if coded.shape != case.shape or decode(coded).shape != case.shape:
                outcome = f"FAILED: a matrix of shape {coded.shape}"
    return outcome, seconds, peak


def fuzz(inputs: int, seed: int = 0, *, first: int = 0, seconds: float = float("inf"), loud: bool = False) -> Tally:
    """Try inputs ``first`` to ``first + inputs`` of a seed, or as many as the time allows."""
    valid = valid_blobs()
    tally = Tally()
    started = time.monotonic()
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        for number in range(first, first + inputs):
            if time.monotonic() - started > seconds:
                break
            if loud and number % 1000 == 0:
                print(f"from {number}: {len(tally.failures)} failures", file=sys.stderr, flush=True)
            case = make_case(seed, number, valid)
            outcome, took, memory = check(case)
            allowed = TIMES * content_bytes(case) + SPARE_BYTES
            if took > SLOW_SECONDS:
                outcome = f"FAILED: took {took:.1f} s"
            if memory > allowed:
                outcome = f"FAILED: took {memory:.0f} bytes of memory where {allowed:.0f} are allowed"
            tally.inputs += 1
            tally.outcomes[outcome.partition(":")[0]] += 1
            tally.slowest, tally.largest = max(tally.slowest, took), max(tally.largest, memory / allowed)
            if outcome.startswith("FAILED"):
                where = f"seed {seed}, input {number} ({case.kind})"
                tally.failures.append(f"{where}: {outcome}; unpack(bytes.fromhex({case.data.hex()!r}), {case.shape})")
    finally:
        if not tracing:
            tracemalloc.stop()
    return tally


def main() -> int:
    """Run the command and return its exit code: 1 if anything failed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--first", type=int, default=0, help="number of the first input")
    options.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    given = options.parse_args()
    before = peak_memory()
    tally = fuzz(given.inputs, given.seed, first=given.first, seconds=given.seconds, loud=True)
    print(f"{tally.inputs} inputs: {dict(tally.outcomes.most_common())}")
    print(f"slowest {tally.slowest:.3f} s; most memory {tally.largest:.2f} of what is allowed")
    growth = peak_memory() - before
    print(f"the process grew by {growth / 1e6:.1f} MB")
    for failure in tally.failures:
        print(failure)
    return 1 if tally.failures or growth > GROWTH_BYTES else 0


def peak_memory() -> int:
    """Return the peak memory of this process in bytes; the system counts in kibibytes, save on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
