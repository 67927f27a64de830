"""``python -m claims``: run the experiments that test the papers' claims, and write their table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from isthmus.errors import BadInput, IsthmusError

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "claims" / "results", ROOT / "docs" / "claims.md"
QUICK, VALIDATION = ROOT / "build" / "claims", ROOT / "build" / "validation"
STATISTICS = ROOT / "build" / "statistics"
CODING = {
    "deepcabac": "deepcabac",
    "finequant": "finequant",
    "comq": "comq",
    "llm-int8": "llm_int8",
    "squeezellm": "squeezellm",
    "zeroquant-4plus2": "zeroquant_4plus2",
    "vptq": "vptq",
    "lr2vq": "lr2vq",
    "alds": "alds",
}
"""Claims about coders, with the module of each."""
OWN = {
    "rd-layer-pruning": "rd_layer_pruning",
    "q-vlm": "q_vlm",
    "ere-delta": "ere_delta",
    "maestro": "maestro",
    "pv-tuning": "pv_tuning",
    "paretoq": "paretoq",
    "bitnet-b158-reloaded": "bitnet_b158_reloaded",
    "int4-w4a4": "int4_w4a4",
}
"""Claims that measure more than codes, or code otherwise; the module of each has a ``run``."""
TRIALS = {
    "adaptive-mi-estimators": "adaptive_mi_estimators",
    "ai-memory-wall": "ai_memory_wall",
    "bf16-or-death": "bf16_or_death",
    "cachegen": "cachegen",
    "cie-audit": "cie_audit",
    "compressed-nets-forget": "compressed_nets_forget",
    "coupled-quantization": "coupled_quantization",
    "cramming-1568": "cramming_1568",
    "crate": "crate",
    "cs-ib": "cs_ib",
    "cvib": "cvib",
    "dimco": "dimco",
    "dnn-server-overheads": "dnn_server_overheads",
    "ems-kv": "ems_kv",
    "ib-generalization-bound": "ib_generalization_bound",
    "ib-lossy-compression": "ib_lossy_compression",
    "is-vit": "is_vit",
    "keyformer": "keyformer",
    "layer-by-layer": "layer_by_layer",
    "llm-viewer": "llm_viewer",
    "mec-b": "mec_b",
    "mpq": "mpq",
    "normgrad": "normgrad",
    "nvit-hessian-pruning": "nvit_hessian_pruning",
    "posterior-collapse-cvae-hvae": "posterior_collapse",
    "recycled-attention": "recycled_attention",
    "repq-vit": "repq_vit",
    "repquant": "repquant",
    "scissorhands": "scissorhands",
    "shape-of-learning": "shape_of_learning",
    "ssl-transfer": "ssl_transfer",
    "zipvl": "zipvl",
}
"""Claims about measures and objectives; the module of each has ``TRIALS``."""
CLAIMS = ("vtrans", *CODING, *OWN, *TRIALS)


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _words(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    options = argparse.ArgumentParser("python -m claims", description=__doc__)
    options.add_argument("slugs", nargs="*", metavar="CLAIM", help=f"which claims; all ({', '.join(CLAIMS)}) if none")
    options.add_argument("--table", action="store_true", help="only write docs/claims.md from the results")
    options.add_argument("--quick", action="store_true", help="a few minutes, to see it run; kept under build/claims")
    options.add_argument("--model", default="minilm")
    options.add_argument("--steps", type=int, help="of vtrans: steps of recovery (150; quick: 20)")
    options.add_argument("--seeds", type=_integers, help="0,1,2 (quick: 0)")
    options.add_argument("--shares", type=_floats, help="of vtrans: 0.75,0.5,0.25,0.1 (quick: 0.5,0.25)")
    options.add_argument("--methods", type=_words, help="of vtrans: vib and all others (quick: three)")
    options.add_argument("--effort", default="faster", choices=("faster", "fast", "full"), help="of the gates")
    options.add_argument("--no-efforts", action="store_true", help="leave out the gates trained in full at 50 %%")
    options.add_argument(
        "--validation", action="store_true", help="score on pairs held out of STS-B train; kept under build/validation"
    )
    options.add_argument(
        "--join",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="run nothing: add the points of vtrans that other runs left there",
    )
    options.add_argument("--out", type=Path, metavar="FOLDER", help="where the results are (claims/results)")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parser().parse_args(arguments)
    results = options.out or (VALIDATION if options.validation else QUICK if options.quick else RESULTS)
    from claims.tables import write_table

    if options.table:
        write_table(results, PAGE)
        return 0
    try:
        unknown = [slug for slug in options.slugs if slug not in CLAIMS]
        if unknown:
            raise BadInput(f"unknown claim {unknown[0]!r}; the claims are {', '.join(CLAIMS)}")
        slugs = options.slugs or (["vtrans"] if options.join else CLAIMS)
        if options.join and list(slugs) != ["vtrans"]:
            raise BadInput("--join: only the points of vtrans are made side by side; leave out the other claims")
        if "vtrans" in slugs:
            _run_vtrans(options, results / "vtrans.json")
        if coding := [slug for slug in slugs if slug in CODING or slug in OWN]:
            _run_coding(options, coding, results)
        for slug in (slug for slug in slugs if slug in TRIALS):
            from claims import trials

            found = import_module(f"claims.{TRIALS[slug]}").TRIALS
            trials.run(found, results / f"{slug}.json", seeds=options.seeds, quick=options.quick)
    except IsthmusError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished points are kept, run the same command again to go on", file=sys.stderr)
        return 130
    if results == RESULTS:
        write_table(RESULTS, PAGE)
    return 0


def _run_vtrans(options: argparse.Namespace, out: Path) -> None:
    from claims import vtrans
    from claims.common import SEEDS, SHARES, STEPS
    from isthmus.relevance.registry import get

    quick = options.quick
    methods = options.methods or (["vib", "magnitude", "random"] if quick else vtrans.METHODS)
    for method in methods:
        get(method)
    if options.join:
        vtrans.join(
            out,
            [folder / out.name for folder in options.join],
            methods=methods,
            shares=options.shares or SHARES,
            seeds=options.seeds or SEEDS,
            effort=options.effort,
        )
        return
    vtrans.run(
        out,
        model=options.model,
        methods=methods,
        shares=options.shares or ([0.5, 0.25] if quick else SHARES),
        seeds=options.seeds or ([0] if quick else SEEDS),
        steps=options.steps or (20 if quick else STEPS),
        effort=options.effort,
        with_efforts=not (options.no_efforts or quick),
        validation=options.validation,
    )


def _run_coding(options: argparse.Namespace, slugs: Sequence[str], results: Path) -> None:
    from claims import coding
    from claims.data import encoder_task, why_not
    from claims.vtrans import NEEDS
    from isthmus.storage.opening import open as open_network
    from isthmus.tasks.data import data_folder

    folder, missing = data_folder(), why_not(*NEEDS)
    if folder is None or missing:
        raise BadInput(f"{slugs[0]}: skipped, {missing}")
    task = encoder_task(folder, validation=options.validation)
    bench = coding.Workbench(open_network(options.model), task, cache=STATISTICS)
    seeds = options.seeds or ((0,) if options.quick else coding.SEEDS)
    for slug in slugs:
        out = results / f"{slug}.json"
        if slug in OWN:
            own = import_module(f"claims.{OWN[slug]}")
            own.run(bench, out, seeds=seeds, quick=options.quick, cache=STATISTICS)
        else:
            coding.run(import_module(f"claims.{CODING[slug]}").CLAIM, bench, out, seeds=seeds, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
