"""Discovery: the sites of a network, read from the anatomy of its family."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from isthmus.errors import UnsupportedNetwork
from isthmus.network import Network
from isthmus.sites.anatomy import Anatomy, Feature, anatomy_of, has_anatomy
from isthmus.sites.site import Attribute, Gate, Site, Slice
from isthmus.sites.traced import Survey, survey_traced

WIDTH, VOCABULARY, LAYERS = "width", "vocabulary", "layers"


class _View:
    """Looks paths up in a model whose base model may sit one level down."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        # A weight that is rounded where it is read goes by its own name all the same.
        self.parameters = {
            name.replace(".parametrizations.weight.original", ".weight"): parameter
            for name, parameter in model.named_parameters()
            if ".parametrizations.weight.0." not in name  # what is trained beside a weight belongs to no site
        }
        prefix = getattr(model, "base_model_prefix", "")
        self.prefix = f"{prefix}." if prefix and prefix in self.modules else ""

    def path(self, relative: str) -> str | None:
        """Return the full path of a module, or None where the network has none."""
        for candidate in (self.prefix + relative, relative):
            if isinstance(self.modules.get(candidate), nn.Linear | nn.Embedding | nn.LayerNorm | nn.ModuleList):
                return candidate
        return None

    def slices(self, module: str | None, dim: int, block: int = 1, repeat: int = 1) -> tuple[Slice, ...]:
        """Return the slices of a module's weight along ``dim``, and of its bias where ``dim`` is the output's."""
        if module is None:
            return ()
        found = [Slice(f"{module}.weight", dim, block, repeat)] if f"{module}.weight" in self.parameters else []
        if dim == 0 and f"{module}.bias" in self.parameters:
            found.append(Slice(f"{module}.bias", 0, block, repeat))
        return tuple(found)


def discover(network: Network) -> tuple[Site, ...]:
    """Find the sites of a network.

    Returns
    -------
    tuple of Site
        Of a declared anatomy ``vocabulary`` (where there is a tokenizer), ``width``, ``layers``, then heads and neurons
        layer by layer, then features; of any other network what `isthmus.sites.traced.survey_traced` finds.

    Raises
    ------
    UnsupportedNetwork
        If the network has parameters that its declared anatomy does not account for, or nothing can be narrowed.
    """
    return survey(network).sites


def survey(network: Network) -> Survey:
    """Find the sites of a network, and say what is left alone; as `discover` otherwise."""
    config: Any = getattr(network.model, "config", None)
    if has_anatomy(getattr(config, "model_type", None)):
        return Survey(_declared(network))
    found = survey_traced(network)
    if not found.sites:
        reason = found.left[0] if found.left else "no two of its tensors share a dimension that could become smaller"
        raise UnsupportedNetwork(f"network {network.name}: nothing can be narrowed; {reason}")
    return found


def _declared(network: Network) -> tuple[Site, ...]:
    config: Any = network.model.config
    anatomy = anatomy_of(config.model_type)
    view = _View(network.model)
    layers_path = view.path(anatomy.layers)
    if layers_path is None:
        raise UnsupportedNetwork(f"network {network.name}: no layers at {anatomy.layers}; is it a {config.model_type}?")
    count = len(view.modules[layers_path])
    layers = tuple(f"{layers_path}.{index}" for index in range(count))
    sites: list[Site] = []
    if network.tokenizer is not None:
        sites.append(_vocabulary(network, anatomy, view))
    sites.extend(_widths(anatomy, view, layers))
    sites.append(Site(LAYERS, "layers", count, gates=(Gate(layers_path, "skip"),), module=layers_path))
    sites.extend(_heads(anatomy, view, layers))
    for index, layer in enumerate(layers):
        sites.append(_neurons(anatomy, view, layer, index))
    sites.extend(site for feature in anatomy.features if (site := _feature(feature, view)) is not None)
    _check_covered(network, view, sites)
    return tuple(sites)


def _vocabulary(network: Network, anatomy: Anatomy, view: _View) -> Site:
    from isthmus.sites.vocabulary import fixed_tokens

    path = view.path(anatomy.word_embeddings)
    rows = view.modules[str(path)].weight.shape[0]
    fixed = tuple(unit for unit in fixed_tokens(network.tokenizer) if unit < rows)
    return Site(VOCABULARY, "vocabulary", int(rows), view.slices(path, 0), minimum=max(1, len(fixed)), fixed=fixed)


def _widths(anatomy: Anatomy, view: _View, layers: Iterable[str]) -> Iterable[Site]:
    """Yield the residual stream, and the embedding's own width where a projection separates the two."""
    projection = view.path(anatomy.projection) if anatomy.projection else None
    tables = [view.path(path) for path in (anatomy.word_embeddings, *anatomy.other_embeddings)]
    norms = [view.path(path) for path in anatomy.norms]
    stream: list[Slice] = []
    gates: list[Gate] = []
    entry = [part for table in tables for part in view.slices(table, 1)]
    entry += [part for norm in norms for part in view.slices(norm, 0)]
    entry_gates = [Gate(norm, "norm") for norm in norms if norm is not None]
    width = view.modules[str(tables[0])].weight.shape[1]
    if projection is None:
        stream += entry
        gates += entry_gates
    else:
        slices = (*entry, *view.slices(projection, 1))
        yield Site("embedding_width", "width", int(width), slices, tuple(entry_gates), minimum=_least(int(width)))
        stream += view.slices(projection, 0)
        gates.append(Gate(projection, "output"))
        width = view.modules[projection].weight.shape[0]
    part = anatomy.layer
    for layer in layers:
        for path, _ in (*part.readers_attention, *part.readers_ffn):
            stream += view.slices(f"{layer}.{path}", 1)
        for path in (part.attention_output, part.ffn_output):
            stream += view.slices(f"{layer}.{path}", 0)
        for path in part.norms:
            if (norm := view.path(f"{layer}.{path}")) is not None:
                stream += view.slices(norm, 0)
                gates.append(Gate(norm, "norm"))
    fed_by_feature = {path for feature in anatomy.features if view.path(feature.producer) for path in feature.consumers}
    for path in anatomy.outside_readers:
        if path not in fed_by_feature:
            stream += view.slices(view.path(path), 1)
    yield Site(WIDTH, "width", int(width), tuple(stream), tuple(gates), minimum=_least(int(width)))


def _least(width: int) -> int:
    """Return how much of a stream must stay: below a sixteenth there is no network left to recover."""
    return max(1, width // 16)


def _heads(anatomy: Anatomy, view: _View, layers: tuple[str, ...]) -> Iterable[Site]:
    part = anatomy.layer
    found = []
    for index, layer in enumerate(layers):
        attention = f"{layer}.{part.attention}"
        size = int(getattr(view.modules[attention], anatomy.head_size))
        output = f"{layer}.{part.attention_output}"
        slices: tuple[Slice, ...] = ()
        for path, repeat in part.readers_attention:
            slices += view.slices(f"{layer}.{path}", 0, size, repeat)
        slices += view.slices(output, 1, size)
        attributes = tuple(
            Attribute(attention, name, size if times else 1)
            for name, times in part.head_attributes
            if hasattr(view.modules[attention], name)
        )
        units = view.modules[output].weight.shape[1] // size
        found.append(
            Site(
                f"layers.{index}.heads", "heads", int(units), slices, (Gate(output, "input", size),), attributes, index
            )
        )
    bias = view.path(anatomy.head_bias) if anatomy.head_bias else None
    if bias is None:
        return found
    slices = tuple(part for site in found for part in site.slices) + view.slices(bias, 1)
    attributes = tuple(part for site in found for part in site.attributes)
    attributes += tuple(Attribute(view.prefix + module, name) for module, name in anatomy.head_bias_attributes)
    gates = tuple(gate for site in found for gate in site.gates)
    return [Site("heads", "heads", found[0].units, slices, gates, attributes)]


def _neurons(anatomy: Anatomy, view: _View, layer: str, index: int) -> Site:
    part = anatomy.layer
    output = f"{layer}.{part.ffn_output}"
    slices: tuple[Slice, ...] = ()
    for path, repeat in part.readers_ffn:
        slices += view.slices(f"{layer}.{path}", 0, 1, repeat)
    slices += view.slices(output, 1)
    units = int(view.modules[output].weight.shape[1])
    return Site(f"layers.{index}.neurons", "neurons", units, slices, (Gate(output, "input"),), (), index)


def _feature(feature: Feature, view: _View) -> Site | None:
    producer = view.path(feature.producer)
    if producer is None:
        return None
    slices = view.slices(producer, 0)
    norms = [path for norm in feature.norms if (path := view.path(norm)) is not None]
    consumers = [path for consumer in feature.consumers if (path := view.path(consumer)) is not None]
    for norm in norms:
        slices += view.slices(norm, 0)
    for consumer in consumers:
        slices += view.slices(consumer, 1)
    gates = tuple(Gate(norm, "norm") for norm in norms)
    if not norms:
        gates = tuple(Gate(consumer, "input") for consumer in consumers) or (Gate(producer, "output"),)
    units = int(view.modules[producer].weight.shape[0])
    return Site(f"feature.{feature.producer}", "feature", units, slices, gates)


def _check_covered(network: Network, view: _View, sites: Iterable[Site]) -> None:
    """Refuse a network with a parameter that no site accounts for: cutting around it would break it unseen."""
    covered = {part.parameter for site in sites for part in site.slices}
    covered |= {name for name in view.parameters if name.endswith(("classifier.bias", "out_proj.bias"))}
    if network.tokenizer is None:
        covered |= {name for name in view.parameters if "word_embeddings" in name or "tok_embeddings" in name}
    missing = sorted(set(view.parameters) - covered)
    if missing:
        raise UnsupportedNetwork(
            f"network {network.name}: its anatomy does not account for {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + "; open the encoder or the sequence classifier, without other heads"
        )
