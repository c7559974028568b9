"""The page that zooms: one file, nothing from elsewhere, the values of the curves in it, and what moves it."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from emo_hf.plot.figure import figure
from emo_hf.plot.page import page_of
from emo_hf.plot.run import Run
from tests.plot.histories import history


@functools.cache
def page(live: bool = False) -> str:
    run = Run(name="a <b> & </script>", history=history(40))
    return page_of(figure(run), title=run.name, live=live)


def data_of(text: str) -> Any:
    return json.loads(re.search(r'id="data">(.*?)</script>', text, flags=re.S)[1])  # type: ignore[index]


def test_the_page_loads_nothing_from_elsewhere_and_is_one_document() -> None:
    text = page()
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert all(address.startswith(("http://www.w3.org/", "https://matplotlib.org/")) or "purl.org" in address or
               "creativecommons" in address for address in addresses)  # fmt: skip
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text)
    assert "fetch(" not in text
    assert text.count("<svg") == 1
    assert text.count("</html>") == 1
    assert "<title>a &lt;b&gt; &amp; &lt;/script&gt;</title>" in text


def test_the_page_knows_the_values_of_every_curve_and_where_its_panel_lies() -> None:
    panels = data_of(page())["panels"]
    assert [panel["name"] for panel in panels] == ["loss", "learning rate", "scalar σ", "coefficient c", ""]
    curves = {curve["name"]: curve["points"] for panel in panels for curve in panel["curves"]}
    assert curves["training loss"] == [[10, 0.2], [20, 0.1], [30, 0.0666667], [40, 0.05]]
    assert curves["evaluation loss"] == [[20, 0.125], [40, 0.0625]]
    boxes = [panel["box"] for panel in panels]
    assert all(left < right and top < bottom for left, top, right, bottom in boxes)
    assert all(one[3] <= other[1] for one, other in itertools.pairwise(boxes)), "one below the other"
    low, high = panels[0]["steps"]
    assert low <= 10
    assert high >= 40


def test_values_that_are_not_numbers_are_left_out_of_the_page() -> None:
    lines = [line | {"loss": float("nan")} if line.get("loss") == 0.1 else line for line in history(40)]
    panels = data_of(page_of(figure(Run(name="gap", history=lines)), title="gap"))["panels"]
    assert [x for x, _ in panels[0]["curves"][0]["points"]] == [10, 30, 40]


def test_only_the_page_of_a_run_that_is_going_loads_itself_again() -> None:
    assert data_of(page())["reload"] == 0
    assert data_of(page(live=True))["reload"] > 0


NODE = """
const text = require("fs").readFileSync(process.argv[2], "utf8");
const script = text.match(/<script>([\\s\\S]*)<\\/script>/)[1];
const json = text.match(/id="data">([\\s\\S]*?)<\\/script>/)[1];
const listeners = {};
function element(name) {
  const attributes = {};
  return {name, style: {}, attributes, textContent: json, offsetWidth: 100, offsetHeight: 50, innerHTML: "",
    setAttribute: (key, value) => { attributes[key] = value; }, getAttribute: key => attributes[key],
    addEventListener: (type, listener) => { listeners[name + type] = listener; }, appendChild: () => {},
    setPointerCapture: () => {}, getBoundingClientRect: () => ({left: 0, top: 0, width: 720, height: 900}),
    getScreenCTM: () => ({inverse: () => null}), querySelector: () => known.svg};
}
const known = {};
for (const name of ["data", "frame", "svg", "read", "in", "out", "all"]) known[name] = element(name);
known.svg.setAttribute("viewBox", text.match(/viewBox="([^"]+)"/)[1]);
globalThis.document = {getElementById: id => known[id], createElementNS: () => element("line")};
globalThis.location = {hash: ""}; globalThis.history = {replaceState: (a, b, hash) => { location.hash = hash; }};
globalThis.DOMPoint = class { constructor(x, y) { this.x = x; this.y = y; } matrixTransform() { return this; } };
globalThis.addEventListener = (type, listener) => { listeners["window" + type] = listener; };
eval(script);
const seen = [], event = (x, y, more) => ({clientX: x, clientY: y, preventDefault: () => {}, ...more});
const look = () => known.svg.getAttribute("viewBox").split(" ").map(Number);
seen.push(look());
const box = JSON.parse(json).panels[0].box;
listeners.svgpointermove(event(box[2] - 1, (box[1] + box[3]) / 2)); const read = known.read.innerHTML;
listeners.svgwheel(event(300, 200, {deltaY: -1})); seen.push(look());
listeners.svgpointerdown(event(300, 200)); listeners.svgpointermove(event(290, 195)); listeners.svgpointerup();
seen.push(look()); const hash = location.hash;
listeners.windowkeydown(event(0, 0, {key: "0"})); seen.push(look());
console.log(JSON.stringify({seen, read, hash, after: location.hash}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_wheel_drag_and_keys_move_the_view_and_pointing_shows_values(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(), encoding="utf-8")
    (tmp_path / "drive.js").write_text(NODE, encoding="utf-8")
    command = ["node", str(tmp_path / "drive.js"), str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    whole, zoomed, dragged, reset = said["seen"]
    assert zoomed[2] < whole[2]
    share = (300 - zoomed[0]) / zoomed[2], (200 - zoomed[1]) / zoomed[3]
    assert share == pytest.approx((300 / whole[2], 200 / whole[3])), "what the pointer is at stays where it is"
    assert dragged[:2] == pytest.approx([zoomed[0] + 10, zoomed[1] + 5])
    assert dragged[2:] == zoomed[2:]
    assert reset == pytest.approx(whole)
    assert "step 40" in said["read"]
    assert re.search(r"training loss</td><td>0.05<", said["read"])
    assert said["hash"].startswith("#")
    assert said["after"] == "#"
