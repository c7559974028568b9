"""Pictures as files: PNG, SVG, PDF and a page; whatever a run is called, and whatever the disk does."""

from __future__ import annotations

import itertools
import json
import re
import sys
import warnings
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emo_hf.plot.drawing import MOST_NOTES, figure_of
from emo_hf.plot.figure import picture_of
from emo_hf.plot.main import main, write
from emo_hf.plot.run import Run
from tests.plot.histories import DECISIONS, history, save_state

NAMES = ["<!--<script>", "p_$\\frac{$", "_hidden", "a\x01\x1bb", "%{x} &amp; <b>", "名前", "x" * 300, "--> ]]>"]


def data_of(page: str) -> tuple[list[Any], dict[str, Any]]:
    """Traces and layout that a page hands to plotly."""
    found = page[page.rindex("Plotly.newPlot(") :]
    decoder, begins = json.JSONDecoder(), found.index("[")
    traces, length = decoder.raw_decode(found[begins:])
    rest = found[begins + length :]
    return traces, decoder.raw_decode(rest[rest.index("{") :])[0]


def test_the_command_draws_one_run_and_several_into_each_file_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        save_state(tmp_path / name, history())
    monkeypatch.chdir(tmp_path)
    outputs = [f"both{ending}" for ending in (".svg", ".pdf", ".html", ".PNG")]
    assert main(["a", "b", *(f"--output={output}" for output in outputs)]) == 0
    assert capsys.readouterr().out.split() == outputs
    starts = {".svg": b"<?xml", ".pdf": b"%PDF", ".html": b"<!DOCTYPE html>", ".PNG": b"\x89PNG"}
    assert all(Path(output).read_bytes().startswith(starts[Path(output).suffix]) for output in outputs)
    assert main(["a"]) == main(["a", "b"]) == 0
    assert capsys.readouterr().out.split() == ["a/run.png", "runs.png"]
    with Image.open("a/run.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_an_output_that_cannot_be_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path / "a", history())
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    for output, said in (
        ("a.gif", "--output must end in one of .png, .svg, .pdf, .html, got 'a.gif'"),
        ("nowhere/a.png", "cannot write 'nowhere/a.png': No such file or directory"),
        ("folder.png", "cannot write 'folder.png': Is a directory"),
    ):
        assert main(["a", "--output", output]) == 2
        assert capsys.readouterr().err == f"emo-hf plot: {said}\n"
    for package, output, extra in (("matplotlib", "a.png", "hf"), ("plotly", "a.html", "plot")):
        for module in (package, f"{package}.io"):
            monkeypatch.setitem(sys.modules, module, None)
        assert main(["a", "--output", output]) == 2
        said = f'{package} is needed and not installed: pip install "emo_hf[{extra}]"'
        assert capsys.readouterr().err == f"emo-hf plot: {said}\n"


def test_a_run_may_be_called_anything(tmp_path: Path) -> None:
    runs = [Run(name=name, history=history(emo=False), decisions=DECISIONS[:1]) for name in NAMES]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ending in ("svg", "html", "png"):
            write(picture_of(runs), tmp_path / f"a.{ending}")
    xml.dom.minidom.parse(str(tmp_path / "a.svg"))
    figure = figure_of(picture_of(runs))
    legend = {text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()}
    assert {"<!--<script>", "p_$\\frac{$", "_hidden", "a  b", "%{x} &amp; <b>", "名前"} <= legend
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]+src=|<link|<!--<script>", page), "nothing is loaded from elsewhere"
    assert "<li>p_$\\frac{$, step 12: " in page
    traces, _ = data_of(page)
    named = {trace["name"] for trace in traces}
    assert {"&lt;!--&lt;script&gt;", "p_$\\frac{$", "_hidden", "%{x} &amp;amp; &lt;b&gt;"} <= named


def test_the_page_has_the_curves_marks_ranges_and_words(tmp_path: Path) -> None:
    lines = [line | {"loss": float("nan")} if line.get("loss") == 0.1 else line for line in history()]
    save_state(tmp_path, lines, law="v3.1", decisions=DECISIONS)
    assert main([str(tmp_path), "--output", str(tmp_path / "a.html"), "--title", "a <title>"]) == 0
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<title>a &lt;title&gt;</title>" in page
    words = "step 12: rate lowered to 0.3333 of the learning rate: the loss is far above where it began"
    assert f"<li>{words}</li>" in page
    traces, layout = data_of(page)
    curves = {trace["name"]: trace for trace in traces}
    assert curves["training loss"]["x"] == [10, 20, 30, 40]
    assert curves["training loss"]["y"] == [0.2, None, 2 / 30, 0.05]
    assert curves["evaluation"]["y"] == [0.125, 0.0625]
    assert (curves[words]["x"], curves[words]["text"]) == ([12], ["1"])
    said = {each.get("text") for each in layout["annotations"]}
    assert {"sudden fall: brake", "quiet: hands off", "stop signal from step 30", "quiet"} <= said
    assert layout["yaxis3"]["range"] == [-1.0, 1.0]


@pytest.mark.parametrize("count", [1, 14])
def test_no_name_covers_another_or_is_cut_off(count: int) -> None:
    groups = {"lora_a": 1.0, "lora_b": 1.05, "head": 1.1, "embeddings": 1.15}
    run = Run(history=history(groups=groups), law="v3.1", decisions=DECISIONS)
    figure = figure_of(picture_of([Run(**{**vars(run), "name": f"run {i}"}) for i in range(count)]))
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in axes.texts if not text.get_text().isdigit()]
    texts += [text for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) > 10
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x0 >= figure.axes[0].get_window_extent().x1 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert len(figure.get_supxlabel().splitlines()) == min(2 * count, MOST_NOTES)
    assert figure.get_supxlabel().endswith("and 17 more" if count == 14 else "3 evaluations were no better")
