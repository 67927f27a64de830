"""The parts of docs/benchmarks.md about vision networks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from claims.common import point_of
from claims.tables import markdown_table, scores

from benchmarks.vision_pruning import TOLERANCE
from benchmarks.vision_tokens import FASTER, LEAVING, LOST, MODEL


def pruning_section(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the part of docs/benchmarks.md about these results."""
    rows, targets = [], []
    for result in results:
        record, cells = result["record"], scores(result["points"], "metric")
        before, after = scores(result["points"], "before"), scores(result["points"], "after")
        rows.append(
            [
                result["network"],
                "original",
                f"{record['original']['macs'] / 1e6:.1f}",
                f"{100 * record['original']['metric']:.1f}",
                "",
                "",
            ]
        )
        for (label, share), cell in cells.items():
            macs = statistics.fmean(one["macs"] for one in result["points"] if point_of(one).label == label)
            rows.append(
                [
                    result["network"],
                    f"`{label}`",
                    f"{macs / 1e6:.2f}",
                    str(cell),
                    f"{before[label, share].mean:.3f}",
                    f"{after[label, share].mean:.3f}",
                ]
            )
        leads = "; ".join(
            f"{lead:+.1f} ± {result['spread'][label]:.1f} to `{label}`" for label, lead in result["leads"].items()
        )
        targets.append(
            [result["network"], f"≥ {result['target']:g} points ahead", leads, "yes" if result["met"] else "**no**"]
        )
    steps = ", ".join(f"{result['record']['steps']} ({result['network']})" for result in results)
    images = ", ".join(f"{result['record']['images']:,} ({result['network']})" for result in results)
    return [
        "## Vision networks beside Torch-Pruning",
        "",
        markdown_table(["network", "method", "M MACs", "accuracy", "nats after the cut", "after recovery"], rows),
        "",
        f"Half the multiply-accumulates, counted on the narrowed networks: theirs at most {TOLERANCE:.2%} below ours. "
        f"Accuracy in percent, mean ± standard deviation over seeds, on images that no method was tuned and nothing "
        f"was trained on: {images}. The same {steps} steps of recovery from the original, batch norms estimated anew "
        "for all. What is left of ours is besides solved anew in closed form before recovery, as `narrow` does and "
        "Torch-Pruning does not. By the ViT's images the recipe of its own training was chosen, from which both sides "
        "start. "
        f"Torch-Pruning {results[0]['record']['versions']['torch-pruning']}: the best of two importances times six "
        "settings by divergence after the cut.",
        "",
        markdown_table(["network", "target", "reached", "met"], targets),
        "",
    ]


def tokens_section(result: Mapping[str, Any]) -> list[str]:
    """Return the part of docs/benchmarks.md about this result."""
    original, record = result["original"], result["record"]
    rows = [["all tokens", "", "100%", "", f"{original['metric']:.2%}", f"{original['milliseconds']:.1f}", "100%"]]
    for point in result["points"]:
        rows.append(
            [
                f"`{point['policy']}`",
                f"{point['gone']:.1%}",
                f"{point['macs'] / original['macs']:.1%}",
                f"{point['nats']:.4f}",
                f"{point['metric']:.2%}",
                f"{point['milliseconds']:.1f}",
                f"{point['milliseconds'] / original['milliseconds']:.1%}",
            ]
        )
    target = f"{LEAVING:.0%} of the tokens gone: at most {LOST:g} point lost, at least {FASTER:.0%} of the time saved"
    reached = f"`{result['chosen']}`: {result['lost']:.2f} points lost, {1 - result['time']:.1%} of the time saved"
    threads = f"{record['threads']} threads" if record["threads"] else "all cores"
    return [
        "## Tokens of a ViT, without training",
        "",
        markdown_table(["policy", "tokens gone", "MACs", "nats", "accuracy", "ms a batch", "time"], rows),
        "",
        f"`{MODEL}`; tokens gone in the mean over layers, nats of divergence on images to tune on, accuracy on "
        f"{record['images']:,} images that nothing was chosen or trained on, time in OpenVINO at batch "
        f"{record['batch']} on {threads}, float32, all of them turn by turn in one run.",
        "",
        markdown_table(["target", "reached", "met"], [[target, reached, "yes" if result["met"] else "**no**"]]),
        "",
    ]
