"""The page of a benchmark: every number is on it, no text of the JSON gets out of its cell, nothing is loaded."""

from __future__ import annotations

import base64
import io
import json
import math
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emask.bench.metrics import rate
from emask.bench.report import main, page, page_of_methods, plot
from emask.bench.sidebyside import doubted
from emask.bench.table import interval

HOSTILE = '<script src="http://evil.example/x.js">alert(1)</script>" onload=\'x\' & $\\frac{1$ | \n'
JUDGES = ("one", HOSTILE)
FARS = ("0.1", "0.001")
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements, attributes, texts and rows of cells of a page; it fails where elements are not closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def all_text(self) -> str:
        return "\n".join([*self.texts, *("\t".join(row) for row in self.rows)])

    def pictures(self) -> list[bytes]:
        prefix = "data:image/png;base64,"
        sources = [value or "" for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        assert all(source.startswith(prefix) for source in sources)
        return [base64.b64decode(source.removeprefix(prefix), validate=True) for source in sources]


def document(**changed: Any) -> dict[str, Any]:
    """A small document with all parts, every rate of it another one."""
    counter = iter(range(1, 10_000))

    def figures(names: tuple[str, ...], suffixes: tuple[str, ...]) -> dict[str, Any]:
        def one() -> dict[str, Any]:
            hits = next(counter)
            return rate(np.arange(1009) < hits).to_json()  # another share, and another interval, every time

        return {
            judge: {name + suffix: {far: one() for far in FARS} for name in names for suffix in ("", *suffixes)}
            for judge in JUDGES
        }

    quality = {"psnr_mean": 33.25, "psnr_min": 31.07, "ssim_mean": 0.9457}
    protection = ("impersonation_given", "impersonation_other", "dodging_other", "dodging_same")

    def section() -> dict[str, Any]:
        return {"not_found": 3, "before_jpeg": quality, "after_jpeg": quality,
                "recognizers": figures(protection, ("_clean",))}  # fmt: skip

    summary = {"mean": 0.9183, "min": 0.7061, "max": 0.9752, "targets_at_90": 1, "targets": 2}
    return {
        "version": 1, "protocol": "photo",
        "settings": {"faces": 1009, "quality": 90, "strength": "medium", "w": 0.0, "eps": 9.2, "seed": 17},
        "models": {"generator": {"file": "generator.onnx", "sha256": "ab" * 32}},
        "judges": {judge: {"file": "j.onnx", "sha256": "cd" * 32} for judge in JUDGES},
        "faces": 1009,
        "photos": [{"source": "a/1.jpg", "other": HOSTILE}],
        "unseen_targets": [{"name": "Zoe", "given": "z/1.jpg", "other": None}],
        "calibration": {"photos": 40, "people": 20, "impostor_pairs": 760, "photos_without_face": 5},
        "thresholds": {judge: {far: 0.1234 + i / 100 for i, far in enumerate(FARS)} for judge in JUDGES},
        "true_accept": {judge: {"0.1": 0.9871, "0.001": math.nan} for judge in JUDGES},
        "clean": {"not_found": 0, "after_jpeg": quality},
        "default_target": HOSTILE,
        "targets": {"ada": section(), HOSTILE: section()},
        "unseen": section(),
        "erasing": {"default target": {
            "not_found": 2, "protected": quality, "restored": quality,
            "recognizers": figures(("reverified_other", "erased"), ("_protected", "_clean")),
        }},
        "handling": {"jpeg:75": {
            "what": "jpeg:75", "not_found": 4, "not_found_clean": 1, "clean": {"psnr_mean": 36.5},
            "restored": {"psnr_mean": 34.75},
            "recognizers": figures(("impersonation_given", "reverified_other"), ("_clean",)),
        }},
        "identification": {judge: {
            "probes": 1009, "not_found": {"protected": 6, "clean": 0},
            "gallery": {"photos": 2018, "people": 1492, "distractors": 483, "photos_without_face": 8},
            "figures": entry,
        } for judge, entry in figures(("targeted", "untargeted"), ("_restored", "_clean")).items()},
        "summary": {far: {"one": summary, "all recognizers": {"mean": 0.8642}} for far in FARS},
    } | changed  # fmt: skip


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*(n for n in sys.modules if n.startswith("matplotlib.")), "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)


def rates_of(value: Any) -> list[dict[str, Any]]:
    """Every rate anywhere in a document."""
    if isinstance(value, dict):
        return [value] if "hits" in value else [entry for v in value.values() for entry in rates_of(v)]
    return []


@pytest.mark.usefixtures("without_matplotlib")
def test_every_number_is_on_the_page() -> None:
    content = document()
    found = Page(page(content))
    cells = {cell for row in found.rows for cell in row}
    rates = rates_of(content)
    assert len(rates) == 3 * 4 * 2 * 4 + 2 * 3 * 2 * 2 + 2 * 2 * 2 * 2 + 2 * 3 * 2 * 2
    for entry in rates:
        assert f"{interval(entry)} ({entry['hits']} of {entry['n']})" in cells
    assert {"91.83", "70.61", "97.52", "86.42", "98.71"} <= cells  # shares, in percent
    assert {"0.1234", "33.25", "31.07", "0.9457", "760", "17", "9.2"} <= cells
    assert {"ab" * 32, "cd" * 32, "generator.onnx", "Zoe", "medium"} <= cells
    assert {"1492", "483", "34.75", "protected 6, clean 0"} <= cells
    # a figure stands in the row of its recognizer and rate, the clean photos' beside it
    given = content["unseen"]["recognizers"][HOSTILE]
    pair = [given["dodging_same"]["0.001"], given["dodging_same_clean"]["0.001"]]
    assert [HOSTILE, "0.001", *(f"{interval(e)} ({e['hits']} of {e['n']})" for e in pair)] in found.rows


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_there_are_tables_and_a_line_that_says_so() -> None:
    found = Page(page(document()))
    assert "matplotlib is not installed" in found.all_text
    assert "img" not in found.tags and found.tags.count("table") > 10
    assert plot(document()["unseen"]) is None


def test_plots_escaping_and_nothing_loaded() -> None:
    pytest.importorskip("matplotlib")
    content = page(document(warnings=[f"small N {HOSTILE}"], extra={HOSTILE: HOSTILE}))
    found = Page(content)
    assert "script" not in found.tags and "<script" not in content
    assert {name for _, name, _ in found.attributes} <= {
        "alt", "charset", "class", "content", "http-equiv", "lang", "scope", "src",
    }  # fmt: skip
    assert not any("http:" in (value or "") or "https:" in (value or "") for _, name, value in found.attributes
                   if name != "alt")  # fmt: skip
    assert "url(" not in content and "@import" not in content
    assert HOSTILE in {cell for row in found.rows for cell in row}
    assert f"Warning: small N {HOSTILE}" in found.texts
    assert "extra" in found.texts  # what has no place of its own is printed all the same
    pictures = found.pictures()
    assert len(pictures) == 2  # the default target's, and the unseen targets'
    for png in pictures:
        with Image.open(io.BytesIO(png)) as picture:
            assert picture.format == "PNG" and picture.info.get("Software") is None
            assert np.asarray(picture.convert("L")).std() > 5
    assert content == page(document(warnings=[f"small N {HOSTILE}"], extra={HOSTILE: HOSTILE}))


def test_plots_show_the_rates() -> None:
    pytest.importorskip("matplotlib")

    def section(value: float | None) -> dict[str, Any]:
        entry = {"value": value, "low": 0.0, "high": 1.0}
        return {"recognizers": {"j": {"dodging_same": {"0.1": entry}}}}

    assert plot(section(0.2)) == plot(section(0.2)) != plot(section(0.8))
    assert plot(section(None))  # nothing was measured: empty axes
    assert plot({"recognizers": {}}) == plot({"recognizers": {"j": {}}}) == b""


@pytest.mark.usefixtures("without_matplotlib")
def test_a_run_without_targets_or_settings() -> None:
    bare = document(targets={}, unseen=None, erasing={}, summary={"0.1": {}})
    for key in ("version", "protocol", "settings", "models", "judges", "photos", "unseen_targets", "default_target"):
        del bare[key]
    found = Page(page(bare))
    assert "760" in {cell for row in found.rows for cell in row}
    assert "over all of them" not in found.all_text and "Warning" not in found.all_text


@pytest.mark.usefixtures("without_matplotlib")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "bench.json"
    source.write_text(json.dumps(document(settings={"half": "\ud800"})), encoding="utf-8")
    assert main([str(source)]) == 0
    first = (tmp_path / "report.html").read_bytes()
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert main([str(source), "-o", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").read_bytes() == first
    Page(first.decode("utf-8"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench.json", "new", "report.html"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "no JSON file"),
        (b"{", "no JSON file"),
        (b"[1]", "no benchmark's JSON"),
        (b'{"faces": 3}', "it has no 'calibration'"),
        ({"version": 2}, "format 2, this version reads 1"),
        ({"targets": []}, "damaged (AttributeError"),
        ({"thresholds": {"one": {"0.1": 0.5, "0.5": 0.1}}}, "damaged (KeyError"),
        ({"clean": None}, "damaged (TypeError"),
    ],
)
@pytest.mark.usefixtures("without_matplotlib")
def test_what_is_no_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | dict[str, Any] | None, message: str
) -> None:
    source = tmp_path / "bench.json"
    if content is not None:
        source.write_bytes(json.dumps(document(**content)).encode() if isinstance(content, dict) else content)
    assert main([str(source)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert "emask bench" in error or "version that wrote it" in error
    assert not (tmp_path / "report.html").exists()


def methods() -> dict[str, Any]:
    """Two methods: one that erases, and one with the figures of the first turned round, which cannot."""
    first = document()
    first["erasing"] = {"unseen targets": first["erasing"]["default target"]}
    second = document(erasing={}, settings={**first["settings"], "method": HOSTILE})
    second["unseen"]["recognizers"] = dict(zip(JUDGES, reversed(first["unseen"]["recognizers"].values()), strict=True))
    return {"emask": first, HOSTILE: second}


def _other(one: dict[str, Any], judge: str) -> dict[str, Any]:
    entry: dict[str, Any] = one["unseen"]["recognizers"][judge]["impersonation_other"]["0.1"]
    return entry


def test_several_methods_side_by_side(tmp_path: Path) -> None:
    """Every rate that is compared stands on the page under its method, and so do the pages of each."""
    pytest.importorskip("matplotlib")
    documents = methods()
    (tmp_path / "bench.json").write_text(json.dumps({"methods": documents}), encoding="utf-8")
    costs = {"emask": {"protect": {"ms_per_face": 731.5, "memory_mib": 11}}}
    (tmp_path / "cost.json").write_text(json.dumps(costs), encoding="utf-8")
    assert main([str(tmp_path / "bench.json")]) == 0
    found = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert any(row[0] == "emask" and "731.5" in row and "11" in row for row in found.rows)
    for name, one in documents.items():
        # two tables, a judge each, and in each the clean photos' row and one a method
        first = [row for row in found.rows if row[0] == name and interval(_other(one, JUDGES[0])) in row]
        second = [row for row in found.rows if row[0] == name and interval(_other(one, JUDGES[1])) in row]
        assert first and second and found.rows.index(first[0]) < found.rows.index(second[0])
    assert sum(text.endswith(": all figures") for text in found.texts) == 2
    assert len(found.pictures()) == 5  # methods against PSNR, and for each method its targets'
    assert "script" not in found.tags


def test_a_warning_of_all_methods_is_told_once() -> None:
    """With whose it is; the twin: a method by itself is no "all"."""
    documents = {name: {**one, "warnings": ["few photos", f"of {name}"]} for name, one in methods().items()}
    both = [("all methods", "few photos"), *((name, f"of {name}") for name in documents)]
    assert doubted(documents) == both
    assert doubted({"emask": documents["emask"]}) == [("emask", "few photos"), ("emask", "of emask")]
    told = [text for text in Page(page_of_methods(documents)).texts if text.startswith("Warning, ")]
    assert told == [f"Warning, {whose}: {warning}" for whose, warning in both]


@pytest.mark.usefixtures("without_matplotlib")
@pytest.mark.parametrize("content", [[], {}, {"one": 3}, {"one": {"faces": 3}}, {"one": document(thresholds={})}])
def test_what_are_no_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any) -> None:
    source = tmp_path / "bench.json"
    source.write_text(json.dumps({"methods": content}), encoding="utf-8")
    assert main([str(source)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_cosines_beside_the_json_are_drawn(tmp_path: Path) -> None:
    """The twin: without their file, or with one that is damaged, there is a picture less."""
    pytest.importorskip("matplotlib")
    (tmp_path / "bench.json").write_text(json.dumps(document()), encoding="utf-8")

    def pictures() -> int:
        assert main([str(tmp_path / "bench.json")]) == 0
        return len(Page((tmp_path / "report.html").read_text(encoding="utf-8")).pictures())

    before = pictures()
    values = np.linspace(-0.2, 0.9, 30, dtype=np.float32)
    np.savez(tmp_path / "similarities.npz", **{"unseen/one/protected-target": values})  # type: ignore[arg-type]
    assert pictures() == before + 1
    (tmp_path / "similarities.npz").write_bytes(b"PK")
    assert pictures() == before


@pytest.mark.usefixtures("without_matplotlib")
def test_the_json_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "report.html"
    source.write_text(json.dumps(document()), encoding="utf-8")
    before = source.read_bytes()
    assert main([str(source)]) == 2 and "the JSON itself" in capsys.readouterr().err
    assert source.read_bytes() == before
