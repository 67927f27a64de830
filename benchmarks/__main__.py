"""``python -m benchmarks``: measure Isthmus against its targets and beside other tools, and write the tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from isthmus.errors import BadInput, IsthmusError

ROOT = Path(__file__).resolve().parents[1]
RESULTS, CLAIMS, PAGE = ROOT / "benchmarks" / "results", ROOT / "claims" / "results", ROOT / "docs" / "benchmarks.md"
BENCHMARKS = (
    "reach",
    "torch_pruning",
    "bitstream",
    "families",
    "roofline",
    "known_mi",
    "vision_pruning",
    "vision_tokens",
    "cache",
    "layerwise",
    "audits",
)


def _words(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _floats(text: str) -> list[float]:
    return [float(part) for part in _words(text)]


def _integers(text: str) -> list[int]:
    return [int(part) for part in _words(text)]


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    options = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all if none")
    options.add_argument("--table", action="store_true", help="only write docs/benchmarks.md from the results")
    options.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where the results are")
    options.add_argument("--model", default="minilm")
    peer = options.add_argument_group("torch_pruning and vision_pruning")
    peer.add_argument("--steps", type=int, help="of recovery (150; of vision_pruning what fits each network)")
    peer.add_argument("--seeds", type=_integers, help="0 (of vision_pruning and audits 0,1,2)")
    peer.add_argument("--shares", type=_floats, default=[0.75, 0.5, 0.25, 0.1])
    peer.add_argument("--effort", default="faster", choices=("faster", "fast", "full"), help="of our gates")
    peer.add_argument("--networks", type=_words, help="of vision_pruning (resnet56,vit) and audits (sst2,resnet20,vit)")
    reach = options.add_argument_group("reach")
    reach.add_argument("--only", type=_words, default=["half", "quarter", "tenth", "latency"], help="which budgets")
    reach.add_argument("--efforts", type=_words, default=["faster", "full"])
    reach.add_argument("--time", help="handed on to isthmus narrow, such as 20min")
    reach.add_argument("--seed", type=int, default=0)
    reach.add_argument(
        "--again", action="store_true", help="measure anew what is there already (also of roofline and cache)"
    )
    families = options.add_argument_group("families")
    families.add_argument("--budgets", type=_words, default=["12MB", "8MB", "5MB", "3MB"], help="of bytes")
    families.add_argument("--families", type=_words, default=["joint", "bits", "codebook", "rank", "structure"])
    families.add_argument("--recovery", default="none", choices=("none", "faster", "fast", "full"))
    families.add_argument(
        "--validation",
        action="store_true",
        help="score on what is held out of the data to tune on (also of vision_pruning); kept under build/validation",
    )
    roofline = options.add_argument_group("roofline")
    roofline.add_argument("--threads", type=int, help="of the engine; all cores if not given (also of vision_tokens)")
    roofline.add_argument("--passes", type=int, default=6, help="over all micro-benchmarks and networks")
    known = options.add_argument_group("known_mi")
    known.add_argument("--samples", type=_integers, default=[2_000, 10_000])
    known.add_argument("--tools", type=_words, default=["isthmus", "scikit-learn", "npeet", "torch_mist"])
    caches = options.add_argument_group("cache")
    caches.add_argument("--no-peer", action="store_true", help="leave kvpress out")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parser().parse_args(arguments)
    from benchmarks.page import write_page, write_readme

    try:
        unknown = [name for name in options.names if name not in BENCHMARKS]
        if unknown:
            raise BadInput(f"unknown benchmark {unknown[0]!r}; the benchmarks are {', '.join(BENCHMARKS)}")
        if not options.table:
            _run(options)
    except IsthmusError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is finished is kept, run the same command again to go on", file=sys.stderr)
        return 130
    if options.out == RESULTS:
        write_page(RESULTS, CLAIMS, PAGE)
        write_readme(RESULTS, ROOT / "README.md")
    return 0


def _run(options: argparse.Namespace) -> None:
    names = options.names or BENCHMARKS
    if "reach" in names:
        from benchmarks import reach

        reach.run(
            options.out / "reach.json",
            model=options.model,
            budgets=options.only,
            efforts=options.efforts,
            seed=options.seed,
            limit=options.time,
            again=options.again,
        )
    if "bitstream" in names:
        from benchmarks import bitstream

        bitstream.run(options.out / "bitstream.json", model=options.model)
    if "families" in names:
        from benchmarks import families

        families.run(
            (ROOT / "build" / "validation" if options.validation else options.out) / "families.json",
            model=options.model,
            budgets=options.budgets,
            families=options.families,
            effort=options.recovery,
            seed=options.seed,
            validation=options.validation,
        )
    if "roofline" in names:
        from benchmarks import roofline

        roofline.run(options.out / "roofline.json", threads=options.threads, passes=options.passes, again=options.again)
    if "known_mi" in names:
        from benchmarks import known_mi

        known_mi.run(options.out / "known_mi.json", samples=options.samples, seed=options.seed, tools=options.tools)
    if "cache" in names:
        from benchmarks import cache

        cache.run(options.out / "cache.json", peer=not options.no_peer, again=options.again)
    if "layerwise" in names:
        from benchmarks import layerwise

        layerwise.run(options.out / "layerwise.json")
    if "torch_pruning" in names:
        from benchmarks import torch_pruning

        torch_pruning.run(
            options.out / "torch_pruning.json",
            model=options.model,
            shares=options.shares,
            seeds=options.seeds or [0],
            steps=options.steps or 150,
            effort=options.effort,
        )
    if "vision_pruning" in names:
        from benchmarks import vision_pruning

        vision_pruning.run(
            ROOT / "build" / "validation" if options.validation else options.out,
            networks=options.networks or tuple(vision_pruning.CASES),
            seeds=options.seeds or [0, 1, 2],
            steps=options.steps,
            validation=options.validation,
        )
    if "audits" in names:
        from benchmarks import audits

        audits.run(options.out, networks=options.networks, seeds=options.seeds or [0, 1, 2])
    if "vision_tokens" in names:
        from benchmarks import vision_tokens

        vision_tokens.run(
            (ROOT / "build" / "validation" if options.validation else options.out) / "vision_tokens.json",
            threads=options.threads,
            validation=options.validation,
        )


if __name__ == "__main__":
    sys.exit(main())
