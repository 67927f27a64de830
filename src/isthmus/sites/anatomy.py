"""Anatomies: where the sites of an architecture family are, declared once per family.

Paths are relative to the base model (``bert`` within ``BertForSequenceClassification``) or, within ``Layer``,
to one layer. Nothing here runs: ``isthmus.sites.discovery`` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.errors import UnsupportedNetwork


@dataclass(frozen=True)
class Layer:
    """The parts of one layer: projections that read the stream, those that write to it, and its norms.

    ``readers_attention`` and ``readers_ffn`` are ``(path, repeat)``: a fused projection repeats its units.
    """

    readers_attention: tuple[tuple[str, int], ...]
    attention: str
    attention_output: str
    readers_ffn: tuple[tuple[str, int], ...]
    ffn_output: str
    norms: tuple[str, ...]
    head_attributes: tuple[tuple[str, bool], ...] = ()
    """Names of integer attributes of ``attention`` that follow the heads; True: times the head size."""


@dataclass(frozen=True)
class Feature:
    """A vector that passes between modules outside the layers, such as a pooler's output."""

    producer: str
    consumers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """Where the sites of one architecture family are."""

    families: tuple[str, ...]
    layers: str
    layer: Layer
    word_embeddings: str
    other_embeddings: tuple[str, ...]
    norms: tuple[str, ...]
    head_size: str
    """The attribute of ``layer.attention`` that holds the width of one head."""
    projection: str = ""
    """Maps embeddings to the stream where the two differ in width (ELECTRA)."""
    outside_readers: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()
    head_bias: str = ""
    """A table with one column a head, shared by all layers: its heads can only go from all layers at once."""
    head_bias_attributes: tuple[tuple[str, str], ...] = ()


_BERT_LAYER = Layer(
    readers_attention=(("attention.self.query", 1), ("attention.self.key", 1), ("attention.self.value", 1)),
    attention="attention.self",
    attention_output="attention.output.dense",
    readers_ffn=(("intermediate.dense", 1),),
    ffn_output="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    head_attributes=(("num_attention_heads", False), ("all_head_size", True)),
)

ANATOMIES: tuple[Anatomy, ...] = (
    Anatomy(
        families=("bert", "roberta", "electra"),
        layers="encoder.layer",
        layer=_BERT_LAYER,
        word_embeddings="embeddings.word_embeddings",
        other_embeddings=("embeddings.position_embeddings", "embeddings.token_type_embeddings"),
        norms=("embeddings.LayerNorm",),
        head_size="attention_head_size",
        projection="embeddings_project",
        outside_readers=("pooler.dense", "classifier", "classifier.dense"),
        features=(Feature("pooler.dense", ("classifier",)), Feature("classifier.dense", ("classifier.out_proj",))),
    ),
    Anatomy(
        families=("mpnet",),
        layers="encoder.layer",
        layer=Layer(
            readers_attention=(("attention.attn.q", 1), ("attention.attn.k", 1), ("attention.attn.v", 1)),
            attention="attention.attn",
            attention_output="attention.attn.o",
            readers_ffn=(("intermediate.dense", 1),),
            ffn_output="output.dense",
            norms=("attention.LayerNorm", "output.LayerNorm"),
            head_attributes=(("num_attention_heads", False), ("all_head_size", True)),
        ),
        word_embeddings="embeddings.word_embeddings",
        other_embeddings=("embeddings.position_embeddings",),
        norms=("embeddings.LayerNorm",),
        head_size="attention_head_size",
        outside_readers=("pooler.dense", "classifier.dense"),
        features=(Feature("pooler.dense"), Feature("classifier.dense", ("classifier.out_proj",))),
        head_bias="encoder.relative_attention_bias",
        head_bias_attributes=(("encoder", "n_heads"),),
    ),
    Anatomy(
        families=("distilbert",),
        layers="transformer.layer",
        layer=Layer(
            readers_attention=(("attention.q_lin", 1), ("attention.k_lin", 1), ("attention.v_lin", 1)),
            attention="attention",
            attention_output="attention.out_lin",
            readers_ffn=(("ffn.lin1", 1),),
            ffn_output="ffn.lin2",
            norms=("sa_layer_norm", "output_layer_norm"),
            head_attributes=(("n_heads", False), ("dim", True)),
        ),
        word_embeddings="embeddings.word_embeddings",
        other_embeddings=("embeddings.position_embeddings",),
        norms=("embeddings.LayerNorm",),
        head_size="attention_head_size",
        outside_readers=("pre_classifier",),
        features=(Feature("pre_classifier", ("classifier",)),),
    ),
    Anatomy(
        families=("modernbert",),
        layers="layers",
        layer=Layer(
            readers_attention=(("attn.Wqkv", 3),),
            attention="attn",
            attention_output="attn.Wo",
            readers_ffn=(("mlp.Wi", 2),),
            ffn_output="mlp.Wo",
            norms=("attn_norm", "mlp_norm"),
        ),
        word_embeddings="embeddings.tok_embeddings",
        other_embeddings=(),
        norms=("embeddings.norm", "final_norm"),
        head_size="head_dim",
        outside_readers=("head.dense",),
        features=(Feature("head.dense", ("classifier",), ("head.norm",)),),
    ),
)


def has_anatomy(model_type: str | None) -> bool:
    """Return whether an anatomy is declared for a transformers ``model_type``; other networks are traced."""
    return any(model_type in anatomy.families for anatomy in ANATOMIES)


def anatomy_of(model_type: str) -> Anatomy:
    """Return the anatomy of a transformers ``model_type``.

    Raises
    ------
    UnsupportedNetwork
        If none is declared for it.
    """
    for anatomy in ANATOMIES:
        if model_type in anatomy.families:
            return anatomy
    known = ", ".join(sorted(family for anatomy in ANATOMIES for family in anatomy.families))
    raise UnsupportedNetwork(f"network of type {model_type!r}: no anatomy is declared for it; known are {known}")
