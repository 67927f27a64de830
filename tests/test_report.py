"""The report: one page, whole, safe and self-contained."""

from __future__ import annotations

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
VOID = {"meta", "link", "br", "col", "input", "img", "hr"}
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


@pytest.fixture(scope="module")
def narrowed() -> report.ReportData:
    return report.ReportData.model_validate_json(EXAMPLE.read_text())


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
    )
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
