"""The benchmark's own parts: what is run, what may be concluded, and that no wrong answer gets a ratio."""

import csv
import io
import json
import math
import platform
import sys

import pytest
import torch
from click.testing import CliRunner

from cnnkern.bench import compare, fused, kernels, models, report, roofline, run, shapes, suites, summary, verify
from cnnkern.bench.cli import bench
from cnnkern.bench.operands import draw, own_call
from cnnkern.bench.peers import vendor_call, vendor_calls
from cnnkern.bench.record import Comparison, Record, Row, WholeRow
from cnnkern.bench.suites import Part, Use
from cnnkern.bench.timing import Ratio, Timing, median_interval, quantile, race, verdict
from cnnkern.problem import DIRECTIONS, ConvProblem

# --- what is run


@pytest.mark.parametrize("network", shapes.names())
def test_shapes_files_are_those_of_the_models(network):
    assert (shapes.DIRECTORY / f"{network}.txt").read_text() == shapes.format_layers(network, shapes.trace(network))


def test_shapes_file_reads_back():
    layers = shapes.read("resnet50")
    assert shapes.parse_layers(shapes.format_layers("resnet50", layers)) == layers
    assert sum(layer.times for layer in layers) == 53
    flops = sum(layer.times * layer.problem.flops for layer in layers)
    assert flops / 2 == pytest.approx(4.089e9 - 2048 * 1000, rel=1e-3)  # the published count, less the last layer


def test_shapes_line_that_is_no_layer():
    with pytest.raises(ValueError, match="conv"):
        shapes.parse_layers("conv 1 first")


def test_cases_are_unique_and_know_their_uses():
    cases = suites.cases([Part(("resnet50", "resnext50_32x4d"), "fprop", "f32", 1)])
    problems = [str(case.problem) for case in cases]
    assert len(set(problems)) == len(problems)
    stem = next(case for case in cases if suites.is_stem(case.problem))
    assert stem.uses == (Use("resnet50", "conv1", 1), Use("resnext50_32x4d", "conv1", 1))


def test_dgrad_has_no_stem_and_no_bias():
    cases = suites.cases([Part(("vgg16",), "dgrad", "bf16", 16)])
    assert cases
    for case in cases:
        assert case.problem.c > 4
        assert not case.problem.epilogue.shift
        assert (case.problem.direction, case.problem.dtype, case.problem.n) == ("dgrad", "bf16", 16)


def test_options_replace_what_the_suite_says():
    assert suites.parts("alexnet", directions=["wgrad"], batches=[4]) == [Part(("alexnet",), "wgrad", "f32", 4)]


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("fprop-f32-n1c64h56w56-k256r1s1", "pointwise"),
        ("fprop-f32-n1c64h56w56-k64r3s3-p1", "dense 3x3"),
        ("fprop-f32-n1c64h56w56-k64r3s3-p1-g64", "depthwise"),
        ("fprop-f32-n1c128h56w56-k128r3s3-p1-g32", "grouped"),
        ("fprop-f32-n1c3h224w224-k64r3s3-p1", "stem"),
        ("fprop-f32-n1c64h27w27-k192r5s5-p2", "other"),
    ],
)
def test_family(text, family):
    assert suites.family(ConvProblem.parse(text)) == family


def test_models_meet_the_vendor_at_its_best(monkeypatch):
    """cuDNN's choice by measurement, as a user who knows it asks for it; the setting is the process's again after."""
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(models, "measure_model", lambda *_: seen.append(torch.backends.cudnn.benchmark))
    models.measure(Record("test"), ["lenet5"], [1], ["eager"], 1, lambda row: None)
    assert (seen, torch.backends.cudnn.benchmark) == ([True], False)


# --- what may be concluded


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.05, 1.10, "faster"),
        (0.80, 0.95, "slower"),
        (0.99, 1.01, "same"),
        (0.95, 1.10, "undecided"),
        (1.01, 1.10, "undecided"),
    ],
)
def test_verdict(low, high, expected):
    assert verdict(low, high) == expected


def test_quantile_interpolates():
    assert quantile([4.0, 1.0, 3.0, 2.0, 5.0], 0.5) == 3.0
    assert quantile([0.0, 1.0], 0.1) == pytest.approx(0.1)


def test_interval_holds_the_median_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(2000):
        low, high = median_interval(sorted(torch.randn(15, generator=generator).tolist()))
        held += low <= 0 <= high
    assert 0.95 <= held / 2000 <= 0.99  # of 15 samples the sign test's interval has 96.5%


def test_ratio_is_taken_round_by_round():
    drift = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    ratio = Ratio.of(drift, [1.25 * seconds for seconds in drift])
    assert (ratio.value, ratio.verdict) == (1.25, "faster")


class Clock:
    """Calls that take the time they say."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def call(self, seconds, output=None):
        def run():
            self.now += seconds
            return output

        return run


def test_race_finds_the_better_peer_and_stops_when_settled(monkeypatch):
    clock = Clock(monkeypatch)
    own = {"ours": clock.call(0.010, "y")}
    (ours,), peer = race(own, {"slow": clock.call(0.090), "good": clock.call(0.012)}, budget=1000)
    assert peer.name == "good"
    assert ours.output == "y"
    assert clock.now < 2  # far less than the budget
    assert Ratio.of(ours.samples, peer.samples).value == pytest.approx(1.2)


def test_race_empties_the_caches_before_each_cold_call(monkeypatch):
    clock = Clock(monkeypatch)
    order = []
    calls = {name: lambda name=name: order.append(name) or clock.call(0.001)() for name in ("a", "b")}
    race({"a": calls["a"]}, {"b": calls["b"]}, budget=0, flush=lambda: order.append("flush"))
    timed = order[4:]  # after the two calls that warm each of them up
    assert timed[::2] == ["flush"] * (len(timed) // 2)
    assert set(timed[1::2]) == {"a", "b"}


# --- no speedup for a wrong answer

OWN, WRONG = (f"cpu_direct_fprop_f32_nhwc_any__{isa}" for isa in ("own", "wrong"))
PROBLEMS = [
    "fprop-f32-n2c8h9w7-k12r3s3-u2-p1x0x2x1-g4",
    "fprop-f32-n3c3h11w11-k8r5s5-u2-p2-shift",
    "fprop-bf16-n1c16h6w6-k16r1s1",
    "dgrad-f32-n2c8h9w7-k12r3s3-u2-p1-g4",
    "dgrad-f32-n1c6h8w8-k6r3s3-p2-l2-g6",
    "wgrad-f32-n2c8h9w7-k12r3s3-u2-p1-g4",
    "wgrad-f32-n2c6h8w8-k6r3s3-p1-g6",
]
SYMMETRIC = [problem for problem in PROBLEMS if "p1x0x2x1" not in problem]  # as the vendor's convolution must be


@pytest.mark.parametrize("text", SYMMETRIC)
def test_right_answers_pass(text):
    problem = ConvProblem.parse(text)
    operands = draw(problem)
    checked = verify.verify(problem, operands, vendor_call(problem, operands)(), vendor_call)
    assert checked.fault == ""
    assert 0 < checked.error < 0.05


@pytest.mark.parametrize("text", PROBLEMS)
def test_own_kernels_pass_the_check_of_the_timed_buffer(text):
    problem = ConvProblem.parse(text)
    operands = draw(problem)
    assert verify.check_timed(problem, operands, own_call(problem, operands)()).fault == ""


@pytest.mark.parametrize("text", SYMMETRIC)
@pytest.mark.parametrize("damage", ["one value", "a NaN", "two maps swapped"])
def test_damaged_timed_buffer_is_found(text, damage):
    problem = ConvProblem.parse(text)
    operands = draw(problem)
    output = vendor_call(problem, operands)().clone()
    if damage == "one value":
        output[-1, -1, -1, -1] += 2 * output.std()
    elif damage == "a NaN":
        output[0, 0, 0, 0] = math.nan
    else:
        dim = 0 if problem.direction == "wgrad" else 1
        output = output.roll(1, dim)
    assert "timed output" in verify.check_timed(problem, operands, output).fault


def test_answers_that_change_or_are_not_exact_are_found():
    problem = ConvProblem.parse("fprop-f32-n1c8h8w8-k8r3s3-p1")
    operands = draw(problem)
    right = vendor_call(problem, operands)()

    def unfilled(problem, operands):  # leaves its last map as it found it
        def call():
            output = torch.empty(right.shape)
            output[:, :-1] = vendor_call(problem, operands)()[:, :-1]
            return output

        return call

    def rounded(problem, operands):  # adds what real data hide
        return lambda: vendor_call(problem, operands)() * (1 + 2**-22)

    assert "poisoned" in verify.verify(problem, operands, right, unfilled).fault
    assert "integer" in verify.verify(problem, operands, rounded(problem, operands)(), rounded).fault


@pytest.mark.usefixtures("fast_machine")
def test_wrong_kernel_gets_no_ratio():
    def wrong(problem, operands, kernel=None):
        return lambda: vendor_call(problem, operands)() * 1.001

    rows = measured("fprop-f32-n1c8h8w8-k8r3s3-p1", {WRONG: wrong})
    assert "timed output" in rows[0].fault
    record = Record("test", rows=rows)
    assert record.right == []
    assert WRONG in report.render("report.md", record).split("## Faults")[1]
    assert summary.means(record.right) == []


def test_impossible_time_is_a_fault(monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda dtypes: ceilings_of(1.0))
    (impossible,) = measured("fprop-f32-n1c8h8w8-k8r3s3-p1", {OWN: own_call})
    assert "roofline" in impossible.fault


def test_ceilings_are_measured_again_before_a_time_is_called_impossible(monkeypatch):
    found = iter([ceilings_of(1.0), ceilings_of(1e15)])
    monkeypatch.setattr(roofline, "measure", lambda dtypes: next(found))
    (possible,) = measured("fprop-f32-n1c8h8w8-k8r3s3-p1", {OWN: own_call})
    assert possible.fault == ""


@pytest.mark.usefixtures("fast_machine")
def test_no_case_is_begun_when_the_time_is_up():
    record = Record("test")
    case = suites.Case(ConvProblem.parse("fprop-f32-n1c8h8w8-k8r3s3-p1"), ())
    run.measure(record, [case], None, 0.0, lambda row: None)
    assert record.rows == []
    assert record.missing == {str(case.problem): "the 0 seconds were spent"}


def ceilings_of(rate=1e15):
    """A machine that does that many FLOP and bytes a second."""
    return roofline.Ceilings({"f32": rate}, {1 << 18: rate}, rate)


@pytest.fixture
def fast_machine(monkeypatch):
    """Spares the measuring of the ceilings, and the alarm of a machine that does other things too."""
    monkeypatch.setattr(roofline, "measure", lambda dtypes: ceilings_of())


def measured(text, makers):
    case = suites.Case(ConvProblem.parse(text), ())
    return run.measure_case(case, makers, 0.0, lambda: None, roofline.Roofline(["f32"]))


# --- peers and ceilings


def test_vendor_runs_in_both_layouts():
    problem = ConvProblem.parse("fprop-f32-n1c8h8w8-k8r3s3-p1")
    calls = vendor_calls(problem, draw(problem))
    assert [name.split("_")[4] for name in calls] == ["nhwc", "nchw"]
    outputs = [call() for call in calls.values()]
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    assert outputs[1].is_contiguous()
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_arithmetic_on_padding_is_not_needed():
    assert roofline.needed_flops(ConvProblem.parse("fprop-f32-n1c1h7w7-k1r3s3-p1")) == 2 * (3 * 7 - 2) ** 2
    valid = ConvProblem.parse("wgrad-f32-n2c4h9w7-k6r3s3-u2-l2-g2")
    assert roofline.needed_flops(valid) == valid.flops


def test_cold_rows_are_held_to_memory():
    ceilings = roofline.Ceilings({"f32": 1e30}, {1 << 10: 100.0, 1 << 20: 50.0}, 10.0)
    problem = ConvProblem.parse("fprop-f32-n1c64h8w8-k64r1s1")
    moved, kernel = 4 * (2 * 64 * 64 + 64 * 64), "cpu_pointwise_fprop_f32_nhwc_6x64__avx512"
    assert ceilings.seconds(problem, kernel, cold=True) == moved / 10
    assert ceilings.seconds(problem, kernel, cold=False) == moved / 100


def test_winograd_needs_a_quarter_of_the_arithmetic():
    ceilings = roofline.Ceilings({"f32": 1.0}, {1 << 10: 1e30}, 1e30)
    problem = ConvProblem.parse("fprop-f32-n1c64h8w8-k64r3s3-p1")
    direct, winograd = (
        ceilings.seconds(problem, f"cpu_{name}__avx512", cold=False)
        for name in ("implicit_gemm_fprop_f32_nhwc_6x64", "winograd_fprop_f32_nhwc_4x4")
    )
    assert direct == 4 * winograd == roofline.needed_flops(problem)


# --- records and reports


def comparison(value, spread=0.01):
    ratio = Ratio(value, value - spread, value + spread, verdict(value - spread, value + spread))
    return Comparison(Timing(1e-3, 1e-3, 1e-3, 9), Timing(value * 1e-3, 1e-3, 1e-3, 9), ratio, "vendor")


def row(text, value, fault=""):
    problem = ConvProblem.parse(text)
    kind = problem.direction, problem.dtype, problem.n
    uses, both = (Use("resnet50", "conv2", 2),), comparison(value)
    return Row(text, suites.family(problem), *kind, uses, "cpu_kernel", both, both, 100.0, 0.5, 1e-6, fault)


FAST, SLOW = "fprop-f32-n1c64h56w56-k256r1s1", "fprop-f32-n1c64h56w56-k64r3s3-p1"


@pytest.fixture
def record():
    return Record("cnnkern bench", rows=[row(FAST, 2.0), row(SLOW, 0.5)], ceilings=ceilings_of())


def test_record_reads_back(record, tmp_path):
    record.save(tmp_path / "layers.json")
    assert report.load(tmp_path) == record


def test_record_of_another_schema_is_refused(record, tmp_path):
    record.save(tmp_path / "layers.json")
    data = json.loads((tmp_path / "layers.json").read_text())
    (tmp_path / "layers.json").write_text(json.dumps({**data, "schema": 0}))
    with pytest.raises(ValueError, match="schema 0"):
        report.load(tmp_path)


def test_record_does_not_name_the_machine(record, tmp_path):
    record.save(tmp_path / "layers.json")
    assert f'"{platform.node()}"' not in (tmp_path / "layers.json").read_text()


def test_means_totals_losses_and_bars(record):
    everything, pointwise, dense = summary.means(record.rows)
    assert everything.warm == pytest.approx(1.0)
    assert (pointwise.family, pointwise.warm) == ("pointwise", pytest.approx(2.0))
    assert (dense.family, dense.slower, dense.worst) == ("dense 3x3", 1, 0.5)
    (total,) = summary.totals(record.rows)
    assert (total.own, total.peer) == (pytest.approx(4e-3), pytest.approx(5e-3))
    assert [lost.problem for lost in summary.losses(record.rows)] == [SLOW]
    least, mean = summary.outcomes(record)[:2]
    assert (least.measured, least.met) == (0.5, False)
    assert (mean.measured, mean.rows) == (pytest.approx(1.0), 2)


def test_a_wrong_model_is_in_no_bar_and_told_in_the_reports(record, tmp_path):
    record.rows.clear()
    record.models += [
        WholeRow("resnet50", "forward", comparison(1.25), 1e-6, ""),
        WholeRow("vgg16", "forward", comparison(0.25), 1.0, "the answer is off"),
    ]
    (bar,) = summary.outcomes(record)
    assert (bar.rows, bar.measured) == (1, 1.25)
    record.save(tmp_path / "models.json")
    for text in (report.write(tmp_path).read_text(), (tmp_path / "report.md").read_text()):
        assert "the answer is off" in text
        assert "1.25" in text
        assert "0.25" not in text


def test_reports_are_made_from_the_record(record, tmp_path):
    record.save(tmp_path / "layers.json")
    html = report.write(tmp_path).read_text()
    markdown = (tmp_path / "report.md").read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    for text in (html, markdown):
        assert SLOW in text.split("Losses")[1]
        assert record.date[:10] in text
        assert record.versions["torch"] in text
    assert html.count("<circle") == 2 * len(record.rows)
    assert "http" not in html  # it loads nothing
    assert [(line["problem"], line["verdict"]) for line in rows] == [(FAST, "faster"), (SLOW, "slower")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5e-6, "1.50 us"), (999.4e-6, "999 us"), (45.67e-3, "45.7 ms"), (2.05, "2.05 s")]
)
def test_durations_have_units(seconds, text):
    assert report.duration(seconds) == text


def test_readme_block_is_replaced(record, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nlast year's\n{report.END}\nafter\n")
    report.update_readme(readme, record)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "last year" not in text
    assert "| fprop f32 batch 1 | dense 3x3 | 1 | 0.50 |" in text
    readme.write_text("no markers\n")
    with pytest.raises(ValueError, match="lacks"):
        report.update_readme(readme, record)


# --- the gate


def gate(tmp_path, before, after, *options):
    for name, rows in (("before", before), ("after", after)):
        Record("test", rows=rows).save(tmp_path / f"{name}.json")
    return CliRunner().invoke(bench, ["compare", f"{tmp_path}/before.json", f"{tmp_path}/after.json", *options])


@pytest.mark.parametrize(
    ("after", "code"),
    [
        ([row(FAST, 2.0), row(SLOW, 0.5)], 0),
        ([row(FAST, 1.95), row(SLOW, 0.5)], 0),
        ([row(FAST, 1.8), row(SLOW, 0.5)], 1),
        ([row(FAST, 2.0)], 1),
        ([row(FAST, 2.0), row(SLOW, 0.5, fault="wrong")], 1),
    ],
    ids=["no change", "within 5%", "a loss of 10%", "a row is gone", "a row is wrong"],
)
def test_gate(tmp_path, after, code):
    result = gate(tmp_path, [row(FAST, 2.0), row(SLOW, 0.5)], after, "--fail-if", "5%")
    assert result.exit_code == code, result.output


def test_uncertain_loss_does_not_fail():
    wide = Ratio(1.5, 1.0, 2.0, "undecided")
    assert not compare.Change("row", comparison(1.9).ratio, wide).fails(0.05)


def test_gate_takes_a_percentage(tmp_path):
    assert "not a percentage" in gate(tmp_path, [], [], "--fail-if", "0.05").output


# --- the command


@pytest.mark.usefixtures("fast_machine")
def test_command_measures_one_problem(tmp_path):
    result = CliRunner().invoke(bench, ["--suite", FAST, "--budget", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (measured_row,) = report.load(tmp_path).rows
    assert measured_row.problem == FAST
    assert measured_row.kernel.startswith("cpu_")
    assert (tmp_path / "report.html").exists()


@pytest.mark.usefixtures("fast_machine")
def test_command_runs_each_matching_kernel(tmp_path):
    command = ["--suite", FAST, "--kernel", "im2col|pointwise", "--budget", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(bench, command)
    assert result.exit_code == 0, result.output
    kernels = {measured_row.kernel.split("_")[1] for measured_row in report.load(tmp_path).rows}
    assert kernels == {"im2col", "pointwise"}


def test_command_refuses_what_is_neither_suite_nor_problem():
    assert "is none of default, targets" in CliRunner().invoke(bench, ["--suite", "lenet"]).output


def test_overhead_fused_layers_and_models(tmp_path):
    for command in (["overhead"], ["fused", "--batch", "1"], ["models", "--model", "squeezenet1_0", "--batch", "1"]):
        result = CliRunner().invoke(bench, [*command, "--budget", "0", "--out", str(tmp_path)])
        assert result.exit_code == 0, result.output
    record = report.load(tmp_path)
    assert [line.setting for line in record.overhead] == ["forward", "forward and backward"]
    assert len(record.fused) == 2 * len(fused.pairs())
    assert not [line.fault for line in record.fused if line.fault]
    assert [line.setting for line in record.models] == ["forward, f32, batch 1"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("print(input(), 'ok')", ""),
        ("print(input(), 'refused: it is for compute capability 9.0')", ""),
        ("print(input(), 'refused: it has groups')", "it computes none of the problems"),
        ("print('a ok'); print('b WRONG at 3'); print('c ok'); exit(1)", "b WRONG at 3"),
        ("import os; print('a', flush=True); os.abort()", "exit -6: a"),
        ("import time; print('a', flush=True); time.sleep(60)", "time was up: a"),
    ],
)
def test_what_is_said_of_a_kernel_by_itself(program, why):
    seconds = 3 if "sleep" in program else 60
    assert kernels.why_wrong((sys.executable, "-c", program), "problem kernel\n", seconds) == why


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_problems_of_a_kernel_by_itself(direction):
    kernel = f"cuda_implicit_gemm_{direction}_bf16_nhwc_128x128__sm90"
    lines = [line.split() for line in kernels.problems(kernel).splitlines()]
    assert len(lines) >= 30
    for problem, name in lines:
        assert ConvProblem.parse(problem).direction == direction
        assert name == kernel
