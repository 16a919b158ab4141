"""cnnkern compare: what is counted and measured of nets side by side, and the charts of it."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageColor

from cnnkern.bench import canvas, chart
from cnnkern.bench.chart import Chart, Dot
from cnnkern.bench.complexity import Compared, Comparison, Measured
from cnnkern.cli import main

SVG = "{http://www.w3.org/2000/svg}"
NETS = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 222 * 222, 10))
"""


def compared(name, parameters, flops, top5=None, memory=1 << 20, seconds=0.01):
    return Compared(name, (3, 224, 224), parameters, flops, 1.0, top5, "one crop", Measured(seconds, memory))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The result of the command on a net of the user's, which is in the directory that it is called in."""
    directory = tmp_path_factory.mktemp("users")
    (directory / "users_nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.syspath_prepend(directory)
        threads = torch.get_num_threads()
        result = CliRunner().invoke(main, ["compare", "users_nets:small", "--batch", "2", "--threads", "1"])
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return directory / "cnnkern-compare", result.output


def test_compare_command_counts_and_measures(small):
    directory, output = small
    record = json.loads((directory / "compare.json").read_text())
    (net,) = record["nets"]
    features = 8 * 222 * 222
    assert (net["name"], net["parameters"]) == ("small", 224 + 10 * features + 10)
    assert net["flops"] == features * 27 + 10 * features
    assert record["machine"]["threads"] == 1
    assert net["measured"]["seconds"] > 0
    assert f"{net['parameters'] / 1e6:.2f}" in output


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak of memory")
def test_memory_is_that_of_weights_and_outputs(small):
    (net,) = json.loads((small[0] / "compare.json").read_text())["nets"]
    least = 4 * (net["parameters"] + 2 * 8 * 222 * 222)  # weights, and the convolution's output for two images
    assert least < net["measured"]["memory"] < 4 * least + (64 << 20)  # and what the libraries keep


def test_page_names_the_machine_and_what_is_not_published(small):
    page = (small[0] / "compare.html").read_text()
    record = json.loads((small[0] / "compare.json").read_text())
    assert record["date"] in page
    assert str(record["machine"]["cpu"]) in page
    assert '<td class="n">-<td>' in page  # no published error
    assert not (small[0] / "error.svg").exists()


def test_nets_without_published_error_are_in_no_chart_of_errors():
    found = Comparison(1, [compared("known", 10**6, 10**9, 7.0), compared("unknown", 10**6, 10**9)])
    assert [dot.name for dot in found.charts["error"].dots] == ["known"]
    assert [dot.name for dot in found.charts["cost"].dots] == ["known", "unknown"]
    assert "top-5 error 7.0% (one crop)" in found.nets[0].note(1)


def test_nets_whose_memory_is_not_told_are_in_no_chart_of_costs():
    found = Comparison(1, [compared("told", 10**6, 10**9), compared("untold", 10**6, 10**9, memory=None)])
    assert [dot.name for dot in found.charts["cost"].dots] == ["told"]


def circles(svg):
    found = {}
    for circle in ElementTree.fromstring(svg).iter(f"{SVG}circle"):
        name = circle.find(f"{SVG}title").text.partition(":")[0]
        found[name] = [float(circle.get(key)) for key in ("cx", "cy", "r")]
    return found


@pytest.fixture
def drawn(tmp_path):
    """A chart of three nets: the circles of its SVG, the texts, and its PNG."""
    nets = [compared("tiny", 10**6, 10**8, 20.0), compared("wide", 4 * 10**6, 10**9, 10.0)]
    found = Comparison(1, [*nets, compared("deep", 4 * 10**6, 10**10, 5.0)])
    svg = chart.save(found.charts["error"], tmp_path / "error")
    assert (tmp_path / "error.svg").read_text() == svg
    texts = [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    return circles(svg), texts, Image.open(tmp_path / "error.png").convert("RGB")


def test_dots_lie_on_logarithmic_axes_and_their_areas_are_parameters(drawn):
    (tiny, wide, deep), texts, _ = (drawn[0][name] for name in ("tiny", "wide", "deep")), drawn[1], drawn[2]
    assert wide[0] - tiny[0] == pytest.approx(deep[0] - wide[0], abs=0.3)
    assert wide[1] - tiny[1] == pytest.approx(deep[1] - wide[1], abs=0.3)
    assert tiny[0] < deep[0]
    assert tiny[1] < deep[1]  # pixels count downwards: the lower error lies lower
    assert wide[2] == deep[2] == pytest.approx(2 * tiny[2], rel=0.01)
    assert {"tiny", "wide", "deep"} <= set(texts)


def test_png_has_the_dots_of_the_svg(drawn):
    found, _, image = drawn
    assert image.size == (chart.WIDTH * canvas.FINE, chart.HEIGHT * canvas.FINE)
    x, y, radius = found["deep"]
    colour = ImageColor.getrgb(canvas.COLOURS[2])
    beside_the_grid = (round((at + radius / 2) * canvas.FINE) for at in (x, y))
    seen = image.getpixel(tuple(beside_the_grid))
    mixed = [255 + (part - 255) * canvas.SEE_THROUGH for part in colour]
    assert seen == pytest.approx(mixed, abs=2)


def test_names_do_not_cover_each_other():
    """Many dots at one place: as many names as there are places around it are apart."""
    dots = tuple(Dot(f"net{i}", 1.0, 1.0, 300.0, f"net{i}: ") for i in range(4))
    svg = canvas.Svg(chart.WIDTH, chart.HEIGHT)
    chart.draw(Chart("x", "y", "area", dots), svg)
    names = [text for text in ElementTree.fromstring(str(svg)).iter(f"{SVG}text") if text.text.startswith("net")]
    places = [(float(text.get("x")), float(text.get("y"))) for text in names]
    width = len("net0") * chart.LETTER
    for i, one in enumerate(places):
        for other in places[:i]:
            assert abs(one[0] - other[0]) >= width - 0.1 or abs(one[1] - other[1]) >= canvas.FONT - 0.1


def test_what_a_name_has_is_text_and_not_markup():
    svg = canvas.Svg(chart.WIDTH, chart.HEIGHT)
    chart.draw(Chart("x", "y", "", (Dot("<b>&", 1.0, 1.0, 9.0, "<b>&: "),)), svg)
    assert list(circles(str(svg))) == ["<b>&"]


@pytest.mark.parametrize(("low", "high", "expected"), [(0.15, 3, [0.2, 0.5, 1, 2]), (40, 60, [50])])
def test_ticks(low, high, expected):
    assert chart.ticks(low, high) == pytest.approx(expected)


PEAK = """
import torch
from cnnkern.bench import complexity
told = complexity.forget_peak()
before = complexity.resident("VmRSS")
torch.ones(32 << 18)
print(told, complexity.resident("VmHWM") - before, complexity.resident("VmRSS") - before)
"""


def test_peak_of_memory_is_seen():
    """A block that is written and given back is in the peak; in a process of its own, as nets are measured."""
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout
    told, peak, kept = out.split()
    if told == "False":
        pytest.skip("the system does not forget the peak of memory")
    assert int(peak) > (30 << 20)
    assert abs(int(kept)) < (16 << 20)


def test_unknown_net():
    result = CliRunner().invoke(main, ["compare", "no_such_package:net"])
    assert result.exit_code == 1
    assert "there is no no_such_package:net" in result.output
