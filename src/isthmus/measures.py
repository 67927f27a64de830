"""The measures there are, of whole networks, of layers and of what narrowing took away, as data."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

EVALUATION, ANALYSIS, SERVING = "evaluation", "information-analysis", "serving"


@dataclass(frozen=True)
class Listed:
    """A measure: its name, the paper's slug where it has one, its family, the module that it is in, and what it is."""

    name: str
    slug: str | None
    family: str
    module: ModuleType
    summary: str


def listed() -> tuple[Listed, ...]:
    """Return every measure: of quality, of an audit, of layers, and of where time goes."""
    return (*_quality(), *_audit(), *_layers(), *_cost())


def _quality() -> tuple[Listed, ...]:
    from isthmus.tasks import metrics

    found = (
        ("likeness", "Rank correlation of held-out similarities under the network and under the original."),
        ("spearman", "Rank correlation of a pair's similarity and its score."),
        ("accuracy", "Share of held-out examples whose class is right."),
        ("likelihood", "Geometric mean of the probability of each next token: one over the perplexity."),
    )
    return tuple(Listed(name, None, EVALUATION, metrics, summary) for name, summary in found)


def _audit() -> tuple[Listed, ...]:
    from isthmus.audit import (
        amplification,
        calibration,
        discovery,
        exemplars,
        inputs,
        neighbours,
        position,
        robustness,
        selective,
        transfer,
    )

    found: tuple[tuple[str, str | None, ModuleType, str], ...] = (
        ("exemplars", "compressed-nets-forget", exemplars, "Examples that narrowed networks see otherwise."),
        ("amplification", "cie-audit", amplification, "Damage of a slice over the mean damage, and its rarity."),
        ("slices", None, discovery, "Damage by slice, given or discovered, corrected for how many there are."),
        ("calibration", None, calibration, "Calibration error without sampling's share, Brier score, temperature."),
        ("selective", None, selective, "Risk by coverage, and its area."),
        ("robustness", None, robustness, "What corruptions cost before and after narrowing."),
        ("neighbours", None, neighbours, "The share of nearest neighbours that stay."),
        ("position", None, position, "A score by where the part that decides it stands."),
        ("inputs", "mpq", inputs, "Accuracy by the bytes of an image, and which distance tells what is lost."),
        ("transfer", "ssl-transfer", transfer, "Linear probes, many-shot and few-shot, on sets of other tasks."),
    )
    return tuple(Listed(name, slug, EVALUATION, module, summary) for name, slug, module, summary in found)


def _layers() -> tuple[Listed, ...]:
    from isthmus.information import (
        collapse,
        coupling,
        cramming,
        generalization,
        geometry,
        heads,
        invariance,
        plane,
        saliency,
        spectra,
        superfluous,
    )

    found: tuple[tuple[str, str | None, ModuleType, str], ...] = (
        ("matrix entropy", "layer-by-layer", spectra, "How evenly texts, or a text's tokens, spread over directions."),
        ("effective rank", None, spectra, "How many directions representations spread over."),
        ("anisotropy", "shape-of-learning", spectra, "The share of the variance along one direction."),
        ("coding rate", "crate", spectra, "Nats to say a representation up to an error."),
        ("intrinsic dimension", "shape-of-learning", geometry, "How many dimensions a neighbourhood fills."),
        ("curvature", "layer-by-layer", geometry, "How much the path bends from token to token."),
        ("InfoNCE", "layer-by-layer", invariance, "Nats that two views of a text share, at least."),
        ("DiME", "layer-by-layer", invariance, "By which views that belong together are the more alike."),
        ("LiDAR", "layer-by-layer", invariance, "Directions that tell texts apart beyond how views differ."),
        ("information plane", "ib-lossy-compression", plane, "What layers share with input and label, while training."),
        (
            "superfluous information",
            "ib-generalization-bound",
            superfluous,
            "What a layer keeps beyond the label, I(X; Z | Y).",
        ),
        ("gap bound", "ib-generalization-bound", generalization, "How far new loss can be above training loss."),
        (
            "minimum entropy coupling",
            "mec-b",
            coupling,
            "What a code of bounded entropy tells outputs of a given distribution.",
        ),
        (
            "posterior collapse",
            "posterior-collapse-cvae-hvae",
            collapse,
            "Latents that die, from the spectrum; an alarm for any code.",
        ),
        (
            "saliency",
            "normgrad",
            saliency,
            "What each location adds to a gradient: NormGrad, Grad-CAM and others, by layer.",
        ),
        (
            "cramming",
            "cramming-1568",
            cramming,
            "How much text one input vector of a language model holds, in tokens and bits.",
        ),
        (
            "attention heads",
            None,
            heads,
            "What heads look at: entropy, distance, special tokens, and pairs that they find.",
        ),
    )
    return tuple(Listed(name, slug, ANALYSIS, module, summary) for name, slug, module, summary in found)


def _cost() -> tuple[Listed, ...]:
    from isthmus.cost import pipeline
    from isthmus.flow import formats, roofline

    return (
        Listed("roofline", "llm-viewer", SERVING, roofline, "MACs, bytes, bound and time of every operator."),
        Listed("formats", "bf16-or-death", SERVING, formats, "Every engine and precision, and which suits which use."),
        Listed("pipeline", "dnn-server-overheads", SERVING, pipeline, "Where time goes outside the network."),
    )
