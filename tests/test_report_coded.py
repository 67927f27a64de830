"""The report's views of coded matrices and of the frontier: coordinates against computations of their own."""

from __future__ import annotations

import json
import math
import random
import re
from itertools import pairwise

import pytest
from pydantic import ValidationError

from isthmus.report import CodeRow, FrontierPoint, Saving, numbers
from isthmus.report.codenames import columns, shortened
from isthmus.report.codeviews import Code, coding
from isthmus.report.frontier import chosen, frontier, undominated
from isthmus.report.scales import close

BERT = ("attention.self.query", "attention.self.key", "attention.output.dense", "intermediate.dense", "output.dense")


def row(parameter: str, layer: int | None = None, **more: object) -> CodeRow:
    fields = {"coder": "gptq", "bits": 4, "weights": 1000, "original_bytes": 4000, "bytes": 500}
    return CodeRow.model_validate(fields | {"parameter": parameter, "layer": layer} | more)


def bert(layers: int = 3) -> list[CodeRow]:
    inside = [
        row(f"encoder.layer.{layer}.{name}.weight", layer, bytes=100 + 70 * layer + 31 * place)
        for layer in range(layers)
        for place, name in enumerate(BERT)
    ]  # fmt: skip
    return [row("embeddings.words.weight", bytes=4000, weights=8000), *inside, row("pooler.weight", bytes=90)]


def point(size: float, loss: float, **more: object) -> FrontierPoint:
    return FrontierPoint.model_validate({"bytes": size, "distortion": loss, "params_share": 0.5, "bits": 4} | more)


def limit(amount: float | None, predicted: float | None = None, narrowed: float | None = None) -> Saving:
    return Saving(currency="bytes", unit="B", original=1e8, limit=amount, predicted=predicted, narrowed=narrowed)


def places(path: str) -> list[tuple[float, float]]:
    return [tuple(map(float, part.split())) for part in path.removeprefix("M").split("L")]  # type: ignore[misc]


def test_codes_stand_by_layer_and_by_matrix() -> None:
    view = coding(bert())
    assert view is not None
    assert view.columns == ("query", "key", "attention.output.dense", "intermediate.dense", "output.dense")
    assert [code.name for code in view.before] == ["embeddings.words"]
    assert [code.name for code in view.after] == ["pooler"]
    assert [layer for layer, _ in view.layers] == [0, 1, 2]
    for layer, cells in view.layers:
        for name, cell in zip(BERT, cells, strict=True):
            assert cell is not None
            assert cell.tip.splitlines()[:2] == [f"encoder.layer.{layer}.{name}.weight", f"layer {layer}"]


def test_a_matrix_that_a_layer_lacks_leaves_a_gap() -> None:
    rows = [one for one in bert() if one.parameter != "encoder.layer.1.output.dense.weight"]
    view = coding(rows)
    assert view is not None
    assert [cells[4] is None for _, cells in view.layers] == [False, True, False]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("big", [300, 4000])
def test_bars_have_one_scale_and_fit(big: int, narrow: bool) -> None:
    """Lay the page out by hand: cells and lines of so many pixels, bars as the style sheet has them."""
    rows = [one.model_copy(update={"bytes": big}) if one.layer is None else one for one in bert()]
    view = coding(rows)
    assert view is not None
    line, gap, pad = 800.0, 4.0, 10.0
    across = 2 if narrow else view.across
    cell = (line - (across - 1) * gap) / across - 2 * pad
    size = {code.tip.split("\n")[0]: (code.narrow if narrow else code.wide) * cell for code in _codes(rows)}
    scale = {round(size[one.parameter] / one.bytes, 9) for one in rows}
    assert len(scale) == 1
    longest_cell = max(size[one.parameter] for one in rows if one.layer is not None)
    longest_line = max(size[one.parameter] for one in rows if one.layer is None)
    assert longest_cell <= cell + 1e-9
    assert longest_line <= line - 2 * pad
    assert longest_cell == pytest.approx(cell) or longest_line == pytest.approx(across * cell)


def _codes(rows: list[CodeRow]) -> list[Code]:
    view = coding(rows)
    assert view is not None
    return [*view.before, *(code for _, cells in view.layers for code in cells if code), *view.after]


def test_bits_and_colours_of_a_code() -> None:
    rows = [row("a.weight", bytes=125), row("b.weight", bytes=1000), row("c.weight", bytes=531), row("d", weights=0)]
    codes = {code.name: code for code in _codes(rows)}
    assert {name: code.text for name, code in codes.items()} == {"a": "1.0", "b": "8.0", "c": "4.2", "d": numbers.NONE}
    assert {name: code.step for name, code in codes.items()} == {"a": 1, "b": 8, "c": int(9 * 4.248 / 8), "d": None}


def test_totals_and_coders_add_up() -> None:
    rows = [
        row("a", bytes=3000, weights=4000, original_bytes=16000, predicted_distortion=0.25, coder="vptq"),
        row("b", bytes=1000, weights=4000, original_bytes=16000, predicted_distortion=0.5),
        row("c", bytes=500, weights=1000, original_bytes=4000),
    ]
    view = coding(rows)
    assert view is not None
    spoken = {name: text.replace(numbers.SPACE, " ") for name, text in (*view.totals, *view.coders)}
    assert spoken == {
        "Matrices": "3", "Weights": "9.00 k", "Before": "36.0 kB", "Coded": "4.50 kB, 8.0\u00d7 smaller",
        "Bits a weight": "4.0", "Predicted distortion": "0.750 nats",
        "vptq": "1 matrix, 3.00 kB, 6.0 bits a weight", "gptq": "2 matrices, 1.50 kB, 2.4 bits a weight",
    }  # fmt: skip
    assert [coder for coder, _ in view.coders] == ["vptq", "gptq"]


def test_all_figures_are_in_the_tip() -> None:
    one = row("x.3.q.weight", 3, bits=2.5, bytes=440, predicted_distortion=0.0123)
    (code,) = _codes([one])
    assert code.tip.replace(numbers.SPACE, " ").split("\n") == [
        "x.3.q.weight", "layer 3", "gptq, set to 2.5 bits a weight", "440 B of 4.00 kB (11.0 %)",
        "1,000 weights, 3.5 bits each in the file", "0.0123 nats predicted",
    ]  # fmt: skip


def test_two_stacks_that_count_alike_are_kept_apart() -> None:
    rows = [
        row(f"{stack}.block.{layer}.layer.0.{name}.weight", layer)
        for stack in ("encoder", "decoder")
        for layer in (0, 1)
        for name in ("q", "k")
    ]
    assert columns(rows)[:2] == ["encoder.block.layer.0.q", "encoder.block.layer.0.k"]
    assert len(set(columns(rows))) == 4
    counted_on = [
        one.model_copy(update={"layer": (one.layer or 0) + 2}) if "dec" in one.parameter else one for one in rows
    ]
    assert set(columns(counted_on)) == {"layer.0.q", "layer.0.k"}


@pytest.mark.parametrize(
    "rows",
    [
        [row("a.weight"), row("b.weight")],
        [row("layers.0.a.weight", 0), row("layers.0.b.weight", 0)],
        [row("layer_norm", 0), row("last.1", 1)],
        [row("layers.0.a", 0), row("layers.0.a", 0), row("layers.1.a", 1)],
    ],
)
def test_without_a_like_nothing_stands_in_a_column(rows: list[CodeRow]) -> None:
    assert columns(rows) == [""] * len(rows)
    assert len(_codes(rows)) == len(rows)


def test_many_matrices_wrap_and_bear_their_names() -> None:
    experts = [row(f"layers.{layer}.experts.{one}.up.weight", layer) for layer in range(2) for one in range(16)]
    view = coding(experts)
    assert view is not None
    assert view.columns == ()
    assert [cell.name for cell in view.layers[1][1] if cell] == [f"{one}.up" for one in range(16)]
    loose = coding([row(f"conv{one}.weight") for one in range(40)])
    assert loose is not None
    assert (loose.layers, loose.alone, len(loose.before)) == ((), False, 40)


def test_shortened_names_are_the_shortest_that_tell_them_apart() -> None:
    names = ["attention.self.query", "attention.output.dense", "output.dense", "crossattention.self.query", "lone"]
    short = shortened(names)
    assert short == [
        "attention.self.query",
        "attention.output.dense",
        "output.dense",
        "crossattention.self.query",
        "lone",
    ]
    names += ["mlp.up"]
    assert shortened(names)[-1] == "up"
    for name, end in zip(names, shortened(names), strict=True):
        assert [other for other in names if f".{other}".endswith(f".{end}")].count(name) == 1
        shorter = end.partition(".")[2]
        assert not shorter or sum(f".{other}".endswith(f".{shorter}") for other in names) > 1


def test_code_rows_are_checked() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        row("a", weights=-1)
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        point(1, 1, kept={"heads": 1.5})
    with pytest.raises(ValidationError, match="extra"):
        row("a", colour="red")


def test_frontier_lies_where_its_logarithms_say() -> None:
    sizes, losses = [2e6, 3e6, 7e6, 4e7], [3.0, 1.0, 0.2, 0.004]
    view = frontier([point(*pair) for pair in zip(sizes, losses, strict=True)], None)
    assert view is not None
    across, down = zip(*places(view.path), strict=True)
    for value, (low, high), at in (
        (sizes, (0, 3), across),
        (losses, (0, 3), down),
    ):
        slope = (at[high] - at[low]) / (math.log10(value[high]) - math.log10(value[low]))
        for one, place in zip(value, at, strict=True):
            assert place == pytest.approx(at[low] + slope * (math.log10(one) - math.log10(value[low])), abs=0.1)
        ticks = view.frame.x_ticks if value is sizes else view.frame.y_ticks
        for tick in ticks:
            amount = float(tick.text.removesuffix("MB")) * (1e6 if tick.text.endswith("MB") else 1)
            assert tick.at == pytest.approx(at[low] + slope * (math.log10(amount) - math.log10(value[low])), abs=0.2)
    assert list(across) == sorted(across)
    assert view.frame.left < across[0] < across[-1] < view.frame.right
    assert view.frame.top < down[0] < down[-1] < view.frame.bottom


def test_close_losses_are_on_a_linear_axis_from_zero() -> None:
    view = frontier([point(1e6, 0.5), point(2e6, 0.25)], None)
    assert view is not None
    assert view.frame.y_ticks[0].text == "0"
    (_, upper), (_, lower) = places(view.path)
    assert view.frame.bottom - upper == pytest.approx(2 * (view.frame.bottom - lower), abs=0.2)


def test_undominated_agrees_with_comparing_all_pairs() -> None:
    random.seed(3)
    points = [point(random.randint(1, 30), random.randint(0, 30)) for _ in range(60)]

    def beaten(one: FrontierPoint) -> bool:
        return any(
            other.bytes <= one.bytes
            and other.distortion <= one.distortion
            and (other.bytes, other.distortion) != (one.bytes, one.distortion)
            for other in points
        )

    best = undominated(points)
    pairs = [(one.bytes, one.distortion) for one in best]
    assert set(pairs) == {(one.bytes, one.distortion) for one in points if not beaten(one)}
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(pairs))


def test_dominated_points_are_off_the_line_and_have_no_stop() -> None:
    points = [point(2e6, 1.0), point(3e6, 2.0), point(4e6, 0.5), point(4e6, 0.5)]
    view = frontier(points, limit(3.5e6))
    assert view is not None
    assert [stop.figures[0][1].replace(numbers.SPACE, " ") for stop in view.stops] == ["2.00 MB", "4.00 MB"]
    assert len(places(view.path)) == 2
    assert len(view.dominated) == 2
    assert not {(dot.x, dot.y) for dot in view.dominated[:1]} & set(places(view.path))


@pytest.mark.parametrize(
    ("saving", "expected"),
    [
        (None, None),
        (limit(None), None),
        (limit(5e6), 1),  # the least loss within the limit
        (limit(5e6, predicted=2.1e6), 0),  # the plan itself, held back by another limit
        (limit(7.9e6, predicted=7.8e6), 1),  # never a plan over the limit, however near
        (limit(None, predicted=6e6), 2),  # by ratio: 8 is nearer to 6 than 4 is
        (limit(None, narrowed=5e6), 1),
        (limit(1e6), None),
        (limit(1e6, predicted=2.2e6), 0),
        (limit(math.nan), None),
    ],
)
def test_chosen(saving: Saving | None, expected: int | None) -> None:
    points = [point(2e6, 2.0), point(4e6, 1.0), point(8e6, 0.1)]
    assert chosen(points, saving) == expected
    view = frontier(points, saving)
    assert view is not None
    assert view.start == (1 if expected is None else expected)
    assert [stop.title.endswith("the one chosen") for stop in view.stops].count(True) == (expected is not None)


def test_limit_is_marked_where_it_is_near() -> None:
    points = [point(2e6, 2.0), point(8e6, 0.1)]
    near, far = frontier(points, limit(4e6)), frontier(points, limit(1e9))
    assert near is not None
    assert far is not None
    assert far.limit is None
    assert near.limit is not None
    ends = [across for across, _ in places(near.path)]
    assert near.limit.at == pytest.approx(sum(ends) / 2, abs=0.1)  # 4 is the geometric mean of 2 and 8


def test_one_point_is_a_chart_without_a_line() -> None:
    view = frontier([point(3e6, 0.0)], None)
    assert view is not None
    assert view.path == ""
    assert len(view.stops) == 1
    dot = view.stops[0].dot
    assert dot.x == pytest.approx((view.frame.left + view.frame.right) / 2, abs=0.1)
    assert dot.y == view.frame.bottom


def test_points_that_are_no_numbers_are_left_out() -> None:
    bad = [
        point(math.nan, 1),
        point(0, 1),
        point(-5, 1),
        point(math.inf, 1),
        point(1e6, math.nan),
        point(1e6, math.inf),
    ]
    assert frontier(bad, None) is None
    assert frontier([], limit(1e6)) is None
    view = frontier([*bad, point(1e6, 0.0), point(1e5, 1.0), point(1e4, 50.0, bits=math.nan)], None)
    assert view is not None
    assert len(view.stops) == 3
    assert view.clamped
    assert view.stops[2].dot.y == view.frame.bottom
    assert json.loads(json.dumps(view.shown(), allow_nan=False)) == view.shown()


def test_stops_share_their_kinds_and_coders() -> None:
    points = [
        point(1e6, 1.0, kept={"heads": 0.5}, coders={"gptq": 10}, params_share=0.25, bits=3.14159),
        point(2e6, 0.5, kept={"neurons": 0.75, "heads": 1}, coders={"gptq": 30, "vptq": 40}),
    ]
    view = frontier(points, None)
    assert view is not None
    first, second = view.stops
    plain = [tuple(bar.text.replace(numbers.SPACE, " ") for bar in (*stop.kept, *stop.coders)) for stop in view.stops]
    assert plain == [("50.0 %", numbers.NONE, "10", numbers.NONE), ("100 %", "75.0 %", "30", "40")]
    assert [bar.name for bar in first.kept] == [bar.name for bar in second.kept] == ["heads", "neurons"]
    assert first.shown()["bars"] == [50, 0, 25, 0]  # coders: shares of the most that any coder codes anywhere
    assert second.shown()["bars"] == [100, 75, 75, 100]
    assert [text.replace(numbers.SPACE, " ") for _, text in first.figures] == ["1.00 MB", "1.00 nats", "25.0 %", "3.1"]
    assert re.fullmatch(r"Plan 1 of 2, 1.00.MB on disk, .*3.1 bits a weight", str(first.shown()["spoken"]))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([2e6, 1.1e7], [2e6, 5e6, 1e7]),
        ([0.004, 3.0], [0.01, 0.1, 1.0]),
        ([1e-12, 1.0], [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0]),
        ([9.1e6, 9.7e6], [9e6, 9.5e6]),
    ],
)
def test_close_scale(values: list[float], ticks: list[float]) -> None:
    scale = close(values)
    assert scale.ticks == pytest.approx(ticks)
    assert scale.low < min(values)
    assert max(values) < scale.high
    middle = math.sqrt(scale.low * scale.high)
    assert scale.at(middle) == pytest.approx(0.5)
