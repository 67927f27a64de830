"""The report: one page, whole, safe and self-contained."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydantic import ValidationError

from isthmus import report
from isthmus.errors import BadInput
from isthmus.report import numbers
from isthmus.report.charts import thinned

EXAMPLE = Path(__file__).parent / "data" / "report_example.json"
VOID = {"meta", "link", "br", "wbr", "col", "input", "img", "hr"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")


class Reader(HTMLParser):
    """Reads a page and holds that every element is closed where it must be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute"
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids.update(value or "" for name, value in attrs if name == "id")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> is out of place, line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def codes() -> list[report.CodeRow]:
    """Return the codes of a dozen layers and of two matrices beside them."""
    named = {"attention.self.query": 98_304, "attention.output.dense": 98_304, "intermediate.dense": 344_064}
    inside = [(f"encoder.layer.{layer}.{name}", layer, size) for layer in range(12) for name, size in named.items()]
    return [
        report.CodeRow(
            parameter=f"{name}.weight", layer=layer, coder=("gptq", "vptq", "low-rank")[index % 3], bits=2 + index % 5,
            weights=size, original_bytes=4 * size, bytes=size * (2 + index % 5) / 8 + 300, predicted_distortion=2e-4,
        )
        for index, (name, layer, size) in enumerate(
            [("embeddings.word_embeddings", None, 5_799_936), *inside, ("pooler.dense", None, 147_456)]
        )
    ]  # fmt: skip


def plans() -> list[report.FrontierPoint]:
    """Return a frontier in disorder, with two dominated plans."""
    best = [
        report.FrontierPoint(
            bytes=3e6 * 1.15**step, distortion=4 / 1.4**step, params_share=0.3 + 0.04 * step, bits=2 + step / 4,
            kept={"layers": 0.5 + 0.03 * step, "heads": 0.4 + 0.03 * step},
            coders={"gptq": 20 + step, "vptq": 18 - step},
        )
        for step in range(16)
    ]  # fmt: skip
    worse = [one.model_copy(update={"distortion": one.distortion * 1.3}) for one in best[3:5]]
    return [*best[8:], *worse, *best[:8]]


@pytest.fixture(scope="module")
def narrowed() -> report.ReportData:
    data = report.ReportData.model_validate_json(EXAMPLE.read_text())
    size = report.Saving(currency="bytes", unit="B", original=9.1e7, narrowed=9.15e6, predicted=9.2e6, limit=9.5e6)
    savings = [size if saving.currency == "bytes" else saving for saving in data.savings]
    return data.model_copy(update={"codes": codes(), "frontier": plans(), "savings": savings})


@pytest.fixture(scope="module")
def inspected(narrowed: report.ReportData) -> report.ReportData:
    gone = {"kept": None, "kept_mask": [], "predicted_distortion": None, "measured_distortion": None}
    costs = {"narrowed": None, "predicted": None, "limit": None}
    return narrowed.model_copy(
        update={
            "kind": "inspect",
            "savings": [saving.model_copy(update=costs) for saving in narrowed.savings],
            "sites": [site.model_copy(update=gone) for site in narrowed.sites],
            "quality": None,
            "budget": None,
            "distortion": None,
            "curves": [],
            "examples": [],
            "engines": [],
            "codes": [],
            "frontier": [],
        }
    )


def bare(**more: object) -> report.ReportData:
    fields = {"title": "t", "kind": "narrow", "network": "n", "task": "text:x", "created": "2026-01-01", "version": "0"}
    return report.ReportData.model_validate(fields | more)


SECTIONS = {
    "savings": "saved",
    "quality": "quality",
    "distortion": "distortion",
    "curves": "curves",
    "examples": "examples",
    "engines": "engines",
    "codes": "codes",
    "frontier": "frontier",
    "record": "record",
    "warnings": "h-warnings",
}


def test_narrow_page_says_what_was_saved_and_lost(narrowed: report.ReportData) -> None:
    page = report.render(narrowed)
    reader = read(page)
    text = re.sub(r"\s+", " ", "".join(reader.text))
    assert "11.3 M of 22.7 M parameters — 98.9 % of the quality kept" in text
    assert "2.0\u00d7 fewer" in text
    assert "within the limit of 11.4 M" in text
    assert "as predicted" in text
    assert "layers.3.heads" in text
    assert "What the plan did to each site" in text
    assert all(count == 1 for count in reader.ids.values())


def test_inspect_page_says_where_things_are(inspected: report.ReportData) -> None:
    page = report.render(inspected)
    text = re.sub(r"\s+", " ", "".join(read(page).text))
    assert "22.7 M parameters in 15 sites" in text
    assert "52 % of the parameters are in the vocabulary" in text
    assert "Where the information is" in text
    assert 'id="plan"' not in page


def test_plan_page_is_labelled_as_predicted(narrowed: report.ReportData) -> None:
    savings = [saving.model_copy(update={"narrowed": None}) for saving in narrowed.savings if saving.predicted]
    planned = narrowed.model_copy(update={"savings": savings, "quality": None, "examples": [], "engines": []})
    text = "".join(read(report.render(planned)).text)
    assert "What would be saved" in text
    assert "none is measured" in text
    assert text.count(", predicted") >= len(savings)


def test_page_loads_nothing(narrowed: report.ReportData, inspected: report.ReportData) -> None:
    for data in (narrowed, inspected):
        page = report.render(data)
        for tag, name, value in read(page).attributes:
            if name in {"src", "href", "srcset", "poster", "action", "data"}:
                assert value.startswith("data:"), (tag, name, value)
        assert not re.search(r"https?://|@import|url\(", page)
        assert "default-src 'none'" in page


def test_text_is_escaped() -> None:
    bad = "<script>alert(1)</script>\"'&"
    site = report.SiteRow(name=bad, kind=bad, layer=0, units=2, kept=1, relevance_total=1.0, relevance=[0.5, 0.5],
                          kept_mask=[1, 0], predicted_distortion=0.1, measured_distortion=0.2)  # fmt: skip
    data = bare(
        title=bad, network=bad, task=bad, budget=bad, metric_name=bad, command=bad, warnings=[bad],
        sites=[site], record={bad: {bad: bad}, "deep": [{bad: [bad]}]},
        quality=report.Quality(metric_name=bad, original=0.5),
        curves=[report.Curve(name=f"{bad}: {bad}", unit=bad, points=[(0, 1), (1, 2)])],
        examples=[report.Example(text=bad, text2=bad, original=1, narrowed=0)],
        engines=[report.EngineRow(engine=bad, batch=1, length=bad, original_ms=1)],
        savings=[report.Saving(currency="params", original=2, narrowed=1, note=bad)],
        codes=[
            report.CodeRow(parameter=f"{bad}.{layer}.{bad}", layer=layer, coder=bad, bits=2, weights=8,
                           original_bytes=32, bytes=2)
            for layer in (None, 0, 1)
        ],
        frontier=[
            report.FrontierPoint(bytes=size, distortion=1 / size, params_share=1, bits=4, kept={bad: 1},
                                 coders={bad: 1})
            for size in (1, 2)
        ],
    )  # fmt: skip
    page = report.render(data)
    read(page)
    assert page.count("<script>") == 1
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("field", SECTIONS)
def test_section_is_there_only_with_data(field: str, narrowed: report.ReportData) -> None:
    mark = f'id="{SECTIONS[field]}"'
    assert mark in report.render(narrowed)
    empty = getattr(bare(), field)
    update: dict[str, object] = {field: empty}
    if field == "distortion":
        update["sites"] = []
    without = report.render(narrowed.model_copy(update=update))
    read(without)
    assert mark not in without


def test_stops_of_the_slider_match_what_is_drawn(narrowed: report.ReportData) -> None:
    page = report.render(narrowed)
    stops = json.loads(re.findall(r'<script type="application/json" id="frontier-stops">(.*?)</script>', page)[0])
    section = page[page.index('<section id="frontier"') : page.index("</section>", page.index('id="frontier"'))]
    slider = re.findall(r'<input type="range"[^>]*>', section)
    assert len(slider) == 1
    assert f'max="{len(stops) - 1}"' in slider[0]
    start = stops[int(re.findall(r' value="(\d+)"', slider[0])[0])]
    assert f'aria-valuetext="{start["spoken"]}"' in slider[0]
    assert re.findall(r"data-text>([^<]*)<", section) == start["texts"]
    widths = re.findall(r'data-bar style="width:([\d.]+)%"', section)
    assert [float(width) for width in widths] == start["bars"]
    assert all(len(stop["texts"]) == len(start["texts"]) for stop in stops)
    assert f'cx="{start["x"]}" cy="{start["y"]}"' in section
    assert len(stops) == 16
    assert start["texts"][1].replace(numbers.SPACE, " ") == "9.18 MB"  # 3 MB times 1.15 to the eighth: nearest to 9.2


def test_one_plan_has_no_slider() -> None:
    page = report.render(bare(frontier=plans()[:1]))
    assert "Plan 1 of 1" in "".join(read(page).text)
    assert "<input" not in page
    assert 'type="application/json"' not in page


def test_bare_page_has_no_sections() -> None:
    page = report.render(bare())
    read(page)
    assert "<section" not in page


def test_sites_without_relevance_or_plan_have_no_map_and_no_strips() -> None:
    page = report.render(bare(sites=[report.SiteRow(name="vocabulary", kind="vocabulary", units=3)]))
    read(page)
    assert 'id="information"' not in page
    assert 'id="plan"' not in page
    assert 'id="sites"' in page


def test_numbers_that_are_not_do_no_harm() -> None:
    nan, inf = math.nan, math.inf
    site = report.SiteRow(name="s", kind="heads", layer=0, units=0, kept=0, params=nan, macs=inf, relevance_total=nan,
                          relevance=[nan, 0, -1], predicted_distortion=nan, measured_distortion=-1)  # fmt: skip
    fine = site.model_copy(update={"name": "f", "kind": "neurons", "relevance_total": -0.2, "predicted_distortion": 1})
    data = bare(
        sites=[site, fine],
        savings=[report.Saving(currency="latency", unit="ms", original=nan, narrowed=0.0, predicted=inf, limit=1)],
        quality=report.Quality(metric_name="m", original=nan, narrowed=nan, relative=nan, ci95_original=(nan, 1)),
        distortion=report.Distortion(predicted=nan, measured_before_recovery=-1),
        curves=[report.Curve(name="a", points=[(0, nan), (1, 2), (2, inf)]), report.Curve(name="b", points=[(0, nan)])],
        examples=[report.Example(text="x", original=nan, narrowed=1, label=nan)],
        engines=[report.EngineRow(engine="e", batch=1, length=1, original_ms=nan, spread_original=(nan, inf))],
        codes=[
            report.CodeRow(parameter="c", coder="x", bits=nan, weights=0, original_bytes=nan, bytes=inf),
            report.CodeRow(parameter="d", coder="x", bits=inf, weights=1, original_bytes=0, bytes=-1,
                           predicted_distortion=nan),
        ],
        frontier=[
            report.FrontierPoint(bytes=1, distortion=-1, params_share=nan, bits=inf),
            report.FrontierPoint(bytes=0.5, distortion=1e-9, params_share=inf, bits=nan),
            report.FrontierPoint(bytes=nan, distortion=1, params_share=1, bits=1),
            report.FrontierPoint(bytes=1, distortion=inf, params_share=1, bits=1),
        ],
    )  # fmt: skip
    page = report.render(data)
    read(page)
    assert not re.search(r"\bnan\b|\binf\b", page.split("</style>")[1].split("<script>")[0])
    again = report.ReportData.model_validate_json(data.model_dump_json())
    assert report.render(again) == page


def test_budget_missed_is_said(narrowed: report.ReportData) -> None:
    saving = report.Saving(currency="bytes", unit="B", original=100, narrowed=60, limit=50)
    text = "".join(read(report.render(narrowed.model_copy(update={"savings": [saving]}))).text)
    assert "over the limit of 50" in text


def test_json_round_trip(narrowed: report.ReportData) -> None:
    again = report.ReportData.model_validate_json(narrowed.model_dump_json())
    assert again == narrowed
    assert report.render(again) == report.render(narrowed)


def test_unknown_fields_and_long_strips_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        bare(colour="red")
    with pytest.raises(ValidationError, match="at most 64"):
        report.SiteRow(name="s", kind="heads", units=65, relevance=[0.0] * 65)


def test_bins() -> None:
    assert report.binned([]) == []
    assert report.binned([1.0, 2.0]) == [1.0, 2.0]
    assert report.binned([0.0, 1.0] * 64) == [0.5] * 64
    assert len(report.binned(range(1536))) == 64
    assert report.kept_shares([0, 2], 4) == [1.0, 0.0, 1.0, 0.0]
    assert report.kept_shares(range(100), 1000, bins=10) == [1.0] + [0.0] * 9
    with pytest.raises(ValueError, match="unit 4"):
        report.kept_shares([4], 4)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (22_713_216, "", "22.7 M"), (0, "", "0"), (12, "", "12"), (999_999, "", "1.00 M"), (1536, "", "1.54 k"),
        (90_868_376, "B", "90.9 MB"), (512, "B", "512 B"), (3.4213, "ms", "3.42 ms"), (0.42, "ms", "420 µs"),
        (1234.0, "ms", "1.23 s"), (-0.5, "", "\u22120.500"), (None, "", "\u2013"), (math.nan, "B", "\u2013"),
        (9.996, "s", "10.0 s"),
    ],
)  # fmt: skip
def test_si(value: float | None, unit: str, expected: str) -> None:
    assert numbers.si(value, unit).replace(numbers.SPACE, " ") == expected


def test_other_numbers() -> None:
    assert numbers.percent(0.9893).replace(numbers.SPACE, " ") == "98.9 %"
    assert numbers.percent(0.9996).replace(numbers.SPACE, " ") == "100.0 %"
    assert numbers.percent(1.0).replace(numbers.SPACE, " ") == "100 %"
    assert numbers.nats(0.01234) == "0.0123 nats"
    assert numbers.nats(1.2e-5).replace(numbers.SPACE, " ") == "1.2 \u00d7 10⁻⁵ nats"
    assert numbers.metric(-0.86716) == "\u22120.8672"
    assert numbers.times(2) == "2.0\u00d7"


def test_thinned_curve_keeps_its_spikes() -> None:
    points = [(float(step), 0.0) for step in range(5000)]
    points[2718] = (2718.0, 9.0)
    thin = thinned(points)
    assert len(thin) < 700
    assert (2718.0, 9.0) in thin
    assert thin[0] == points[0]
    assert thin[-1] == points[-1]
    assert thin == sorted(thin)


def test_write_is_whole_or_not_at_all(
    narrowed: report.ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    report.write(narrowed, path)
    assert path.read_text(encoding="utf-8") == report.render(narrowed)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        report.write(bare(), path)
    assert path.read_text(encoding="utf-8") == report.render(narrowed)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_write_to_nowhere_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "report.html", tmp_path / "file" / "report.html"):
        with pytest.raises(BadInput, match=r"report .*give a path") as caught:
            report.write(bare(), path)
        assert "\n" not in str(caught.value)


def test_report_needs_no_torch() -> None:
    code = "import sys, isthmus.report; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def browse(folder: Path, *flags: str, page: Path) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        "--hide-scrollbars", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)


@needs_browser
def test_browser_draws_it_without_complaint(narrowed: report.ReportData, tmp_path: Path) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    report.write(narrowed, page)
    result = browse(tmp_path, f"--screenshot={shot}", "--window-size=1280,2400", page=page)
    assert shot.read_bytes().startswith(b"\x89PNG")
    assert shot.stat().st_size > 50_000
    assert "CONSOLE" not in result.stderr


@needs_browser
def test_slider_shows_the_plan_that_it_stands_at(narrowed: report.ReportData, tmp_path: Path) -> None:
    move = (
        "<script>const s=document.getElementById('frontier-at');s.value=2;s.dispatchEvent(new Event('input'))"
        "</script></body>"
    )
    page = tmp_path / "report.html"
    page.write_text(report.render(narrowed).replace("</body>", move), encoding="utf-8")
    result = browse(tmp_path, "--dump-dom", page=page)
    shown = [text.replace("&nbsp;", " ") for text in re.findall(r'data-text="">([^<]*)<', result.stdout)]
    assert shown[:3] == ["Plan 3 of 16", "3.97 MB", "2.04 nats"]
    assert shown[5:] == ["56.0 %", "46.0 %", "22", "16"]
    slide = re.findall(r'<div class="slide"[^>]*>', result.stdout)
    assert slide == ['<div class="slide">']
    assert "CONSOLE" not in result.stderr


@needs_browser
def test_no_width_scrolls_sideways(narrowed: report.ReportData, inspected: report.ReportData, tmp_path: Path) -> None:
    widths = (360, 390, 768, 1024, 1440)
    tell = (
        "<script>for(const d of document.querySelectorAll('details'))d.open=true;"
        "onload=()=>parent.postMessage([innerWidth,document.documentElement.scrollWidth].join(' '),'*')</script></body>"
    )
    frames = "<pre id=out></pre><script>onmessage=e=>{out.textContent+=e.data+'\\n'}</script>"
    for index, data in enumerate((narrowed, inspected)):
        part = tmp_path / f"{index}.html"
        part.write_text(report.render(data).replace("</body>", tell), encoding="utf-8")
        frames += "".join(f"<iframe src={part.name} style='border:0;width:{width}px'></iframe>" for width in widths)
    page = tmp_path / "frames.html"
    page.write_text(frames)
    result = browse(tmp_path, "--virtual-time-budget=10000", "--dump-dom", page=page)
    found = re.search(r"<pre id=\"out\">(.*?)</pre>", result.stdout, re.DOTALL)
    assert found is not None
    measured = [tuple(map(int, line.split())) for line in found[1].split("\n") if line]
    assert sorted(inner for inner, _ in measured) == sorted(widths * 2)
    assert all(scroll <= inner for inner, scroll in measured), measured
