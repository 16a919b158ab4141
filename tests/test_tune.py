"""Tuned choices: the file, what dispatch makes of it, and a measurement."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import cnnkern
from cnnkern import ConvProblem, dispatch, gpu, testing, tune
from cnnkern import functional as CF
from cnnkern.backends import KernelName
from cnnkern.bench import tune as measuring
from cnnkern.bench.timing import Ratio
from cnnkern.cli import main
from cnnkern.flags import GPU
from cnnkern.native import _C

PROBLEM = ConvProblem.parse("fprop-f32-n1c16h6w6-k16r3s3-p1")
POINTWISE = ConvProblem.parse("fprop-f32-n1c16h6w6-k16r1s1")


@pytest.fixture
def file(tmp_path, monkeypatch):
    """An empty place for choices, in use for one test."""
    file = tmp_path / "cache" / "tuned.json"
    monkeypatch.setenv("CNNKERN_TUNED", str(file))
    tune.forget()
    threads = torch.get_num_threads()
    yield file
    torch.set_num_threads(threads)
    monkeypatch.undo()
    tune.forget()


def able(problem):
    return [name for name, why_not, _ in _C.candidates(str(problem)) if not why_not and "reference" not in name]


def unable(problem):
    return next(name for name, why_not, _ in _C.candidates(str(problem)) if why_not)


def untuned(problem):
    """The kernel that dispatch chooses by itself."""
    return next(name for name, *against in _C.candidates(str(problem)) if not any(against))


def another(problem):
    """A kernel of another family that could run."""
    return next(name for name in able(problem) if family(name) != family(untuned(problem)))


def family(name):
    return KernelName.parse(name).family


def document(**changes):
    """A right file for this machine, with other fields in its entry."""
    entry = {**tune.setting("cpu")._asdict(), "choices": {str(PROBLEM): tune.kernels("cpu").index(another(PROBLEM))}}
    return {"schema": 1, "tuned": [{**entry, **changes}]}


def write(file, content):
    file.parent.mkdir(exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    tune.forget()


# --- the file


def test_what_is_kept_is_read(file):
    name = another(PROBLEM)
    assert tune.choice(PROBLEM) == ""
    tune.keep("cpu", {PROBLEM: name})
    assert tune.choice(PROBLEM) == name
    assert tune.choice(POINTWISE) == ""
    tune.keep("cpu", {POINTWISE: another(POINTWISE)})
    assert tune.choice(PROBLEM) == name
    tune.keep("cpu", {PROBLEM: able(PROBLEM)[0]})
    assert tune.choice(PROBLEM) == able(PROBLEM)[0]
    assert sorted(path.name for path in file.parent.iterdir()) == ["tuned.json", "tuned.json.lock"]


def test_a_choice_serves_every_layout_prologue_and_epilogue(file):
    tune.keep("cpu", {PROBLEM: another(PROBLEM)})
    for more in ("-x:nchw-w:kcrs-y:nchw", "-shift", "-scale-residual-act:silu-xscale-xact:relu"):
        assert tune.choice(ConvProblem.parse(f"{PROBLEM}{more}")) == another(PROBLEM)
    for other in ("fprop-f32-n2c16h6w6-k16r3s3-p1", "fprop-f64-n1c16h6w6-k16r3s3-p1", f"{PROBLEM}-xs32"):
        assert tune.choice(ConvProblem.parse(other)) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"kernels": "0" * 64},
        {"machine": "another"},
        {"threads": 1000},
        {"device": "cuda"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_choices_of_another_setting_are_kept_and_not_used(file, changes):
    write(file, document(**changes))
    assert tune.choice(PROBLEM) == ""
    tune.keep("cpu", {POINTWISE: another(POINTWISE)})
    kept, why_none = tune.read(file)
    assert not why_none
    assert kept[tune.setting("cpu")._replace(**changes)] == document()["tuned"][0]["choices"]


def test_choices_are_for_a_number_of_threads(file):
    tune.keep("cpu", {PROBLEM: another(PROBLEM)})
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert tune.choice(PROBLEM) == ""
    torch.set_num_threads(threads)
    assert tune.choice(PROBLEM) == another(PROBLEM)


def broken_files():
    """Texts of files that are to count as empty."""
    good = document()
    yield from ("", "{", "null", "3", '"text"', "[]", "{}", "NaN", "\0", "[" * 100_000, '{"tuned":' * 100_000)
    yield f'{{"schema": {"9" * 5000}, "tuned": []}}'
    for schema in (0, 2, -1, 1.0, True, "1", None, [1]):
        yield {**good, "schema": schema}
    for tuned in (None, {}, "text", 1, [1], [[]], [None], [{}], [[good["tuned"][0]]]):
        yield {**good, "tuned": tuned}
    for field in good["tuned"][0]:
        for value in (None, [], [[]], 1.5, True, {"a": {"a": 1}}, {"a": [0]}, {"a": -1}, {"a": "0"}, {"a": 1.0}):
            yield document(**{field: value})
        yield {**good, "tuned": [{name: value for name, value in good["tuned"][0].items() if name != field}]}
    yield document(more=1)
    yield document(choices={str(PROBLEM): True})
    yield document(choices={str(PROBLEM): None})


def test_broken_files_count_as_empty(file, recwarn):
    for broken in broken_files():
        write(file, broken)
        assert dispatch.choose(PROBLEM) == untuned(PROBLEM), broken
        assert tune.read(file)[1].startswith("it cannot be read: "), broken
        assert tune.describe().startswith(f"none from {file}: it cannot be read: "), broken
    tune.keep("cpu", {PROBLEM: another(PROBLEM)})
    assert dispatch.choose(PROBLEM) == another(PROBLEM)
    assert not recwarn.list


def test_unreadable_files_count_as_empty(file):
    write(file, "")
    file.write_bytes(b"\xff\xfe")
    assert "cannot be read" in tune.describe()
    file.unlink()
    file.mkdir()
    assert "cannot be read" in tune.describe()
    assert tune.choice(PROBLEM) == ""


@pytest.mark.parametrize("index", [len(tune.kernels("cpu")), 2**63, 10**100])
def test_an_index_beyond_the_list_is_no_choice(file, index):
    write(file, document(choices={str(PROBLEM): index, "no problem": 0}))
    assert tune.choice(PROBLEM) == ""
    assert dispatch.choose(PROBLEM) in able(PROBLEM)


def in_new_process(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=dict(os.environ))


KEEP_MANY = """
import sys
from dataclasses import replace
from cnnkern import ConvProblem, tune
problem, name = ConvProblem.parse(sys.argv[1]), sys.argv[2]
for n in range(int(sys.argv[3]), int(sys.argv[4])):
    tune.keep("cpu", {replace(problem, n=n): name})
"""


def test_processes_that_write_at_once_lose_nothing(file):
    writers = [in_new_process(KEEP_MANY, PROBLEM, another(PROBLEM), first, first + 100) for first in (1000, 2000)]
    for n in range(1, 101):
        tune.keep("cpu", {replace(PROBLEM, n=n): another(PROBLEM)})
    assert [writer.wait() for writer in writers] == [0, 0]
    (choices,) = tune.read(file)[0].values()
    batches = [*range(1, 101), *range(1000, 1100), *range(2000, 2100)]
    assert sorted(choices) == sorted(str(replace(PROBLEM, n=n)) for n in batches)


KILLED = """
import os, signal, sys
from cnnkern import ConvProblem, tune
def die(descriptor):
    os.ftruncate(descriptor, 10)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = die
tune.keep("cpu", {ConvProblem.parse(sys.argv[1]): sys.argv[2]})
"""


def test_a_killed_writer_leaves_the_old_file_and_stops_nobody(file):
    tune.keep("cpu", {PROBLEM: another(PROBLEM)})
    before = file.read_bytes()
    assert in_new_process(KILLED, POINTWISE, another(POINTWISE)).wait() == -signal.SIGKILL
    assert file.read_bytes() == before
    tune.keep("cpu", {POINTWISE: another(POINTWISE)})
    tune.forget()
    assert (tune.choice(PROBLEM), tune.choice(POINTWISE)) == (another(PROBLEM), another(POINTWISE))


def test_where_the_file_is(monkeypatch):
    monkeypatch.setenv("CNNKERN_TUNED", "/there/choices.json")
    assert tune.path() == Path("/there/choices.json")
    monkeypatch.setenv("CNNKERN_TUNED", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert tune.path() == Path("/caches/cnnkern/tuned.json")
    monkeypatch.delenv("CNNKERN_TUNED")
    monkeypatch.setenv("HOME", "/home/of/somebody")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert tune.path() == Path("/home/of/somebody/.cache/cnnkern/tuned.json")
    monkeypatch.setenv("CNNKERN_TUNED", "0")
    assert tune.path() is None


def test_it_can_be_turned_off(file, monkeypatch):
    tune.keep("cpu", {PROBLEM: another(PROBLEM)})
    monkeypatch.setenv("CNNKERN_TUNED", "0")
    tune.forget()
    assert dispatch.choose(PROBLEM) == untuned(PROBLEM)
    assert tune.describe() == "none: CNNKERN_TUNED=0 turns it off"
    with pytest.raises(RuntimeError, match="CNNKERN_TUNED=0"):
        tune.keep("cpu", {PROBLEM: another(PROBLEM)})
    result = CliRunner().invoke(main, ["tune", str(PROBLEM)])
    assert result.exit_code == 1
    assert "CNNKERN_TUNED=0" in result.output


# --- dispatch


def test_dispatch_takes_a_kept_choice(file):
    name = another(PROBLEM)
    x, w = torch.randn(PROBLEM.x_size), torch.randn(PROBLEM.w_size)
    CF.conv2d(x, w, padding=1)
    tune.keep("cpu", {PROBLEM: name})
    CF.conv2d(x, w, padding=1)
    (entry,) = [text for text in _C.memo() if text.startswith("fprop-f32-n1c16h6w6-k16r3s3-p1")]
    assert _C.memo()[entry] == name
    testing.check(PROBLEM)


def test_dispatch_takes_it_in_another_process(file):
    tune.keep("cpu", {PROBLEM: another(PROBLEM)})
    code = "import sys, cnnkern; sys.exit(cnnkern.explain(sys.argv[1]).kernel != sys.argv[2])"
    assert in_new_process(code, PROBLEM, dispatch.choose(PROBLEM)).wait() == 0


def test_dispatch_ignores_a_choice_that_cannot(file):
    tune.keep("cpu", {PROBLEM: unable(PROBLEM)})
    assert tune.choice(PROBLEM) == unable(PROBLEM)
    assert dispatch.choose(PROBLEM) == untuned(PROBLEM)
    assert "tuned" not in cnnkern.explain(PROBLEM).reason


def test_strict_goes_before_a_choice(file):
    name = next(name for name in able(PROBLEM) if testing.is_transformed(name))
    tune.keep("cpu", {PROBLEM: name})
    assert dispatch.choose(PROBLEM) == name
    assert dispatch.choose(PROBLEM, flags=1) == untuned(PROBLEM)


def test_what_is_forced_goes_before_a_choice(file):
    forced = untuned(PROBLEM)
    tune.keep("cpu", {PROBLEM: another(PROBLEM)})
    assert dispatch.choose(PROBLEM, backend="reference").startswith("cpu_reference")
    assert dispatch.choose(PROBLEM, backend="vendor").startswith("vendor")
    with cnnkern.use(kernel=forced):
        assert cnnkern.explain(PROBLEM).kernel == forced


def test_explain_and_info_tell(file):
    assert cnnkern.info()["tuned choices"] == f"none from {file}: there is no such file"
    name = another(PROBLEM)
    tune.keep("cpu", {PROBLEM: name})
    told = cnnkern.explain(PROBLEM)
    assert told.kernel == name
    assert told.reason.endswith("tuned on this machine")
    assert "comes later" not in str(told)
    assert cnnkern.info()["tuned choices"].startswith("1 for ")
    assert str(file) in cnnkern.info()["tuned choices"]
    assert "comes later" in str(cnnkern.explain(POINTWISE))


def test_choices_for_a_gpu_are_its_own(file, monkeypatch):
    picked, *others = (name for name, why_not, _ in dispatch.candidates(PROBLEM, 0, "triton", "cuda") if not why_not)
    tune.keep("cpu", {PROBLEM: another(PROBLEM)})
    with pytest.raises(RuntimeError, match="no cuda device"):
        tune.keep("cuda", {PROBLEM: others[-1]})
    monkeypatch.setattr(tune, "why_no_gpu", lambda: "")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", ("one GPU", "another GPU").__getitem__)
    assert gpu._chosen(PROBLEM, 0, None) == picked
    tune.keep("cuda", {PROBLEM: others[-1]})
    assert gpu._chosen(PROBLEM, 0, None) == others[-1]
    assert dispatch.choose(PROBLEM) == another(PROBLEM)
    assert "1 for one GPU, from" in tune.describe()
    assert gpu._chosen(PROBLEM, 2 << GPU, None) == picked


# --- the measurement


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fprop-f32-n1c4h5w5-k4r3s3-p0x1x1x2", "the vendor pads opposite sides alike"),
        ("fprop-f32-n1c4h5w5-k4r3s3-xs8", "pixel strides"),
    ],
)
def test_what_cannot_be_measured(file, text, reason):
    result = CliRunner().invoke(main, ["tune", text])
    assert result.exit_code == 0
    assert f"not measured: {reason}" in result.output


def test_a_spent_budget(file):
    lines = []
    assert measuring.measure_all([PROBLEM, POINTWISE], "cpu", 0, lambda line, style: lines.append(line))
    assert lines == [f"{problem}  not measured: the 0 seconds were spent" for problem in (PROBLEM, POINTWISE)]


def test_a_wrong_kernel_is_neither_timed_nor_kept(file, monkeypatch):
    torch.set_num_threads(1)
    wrong = {another(PROBLEM)}
    own_call = measuring.own_call

    def sabotaged(problem, operands, kernel, flags):
        call = own_call(problem, operands, kernel, flags)
        return lambda: call() + (float("nan") if kernel in wrong else 0)

    monkeypatch.setattr(measuring, "own_call", sabotaged)
    lines = []
    assert not measuring.measure_all([PROBLEM], "cpu", 0.05, lambda line, style: lines.append(line))
    assert f"{another(PROBLEM)} is off by nan" in lines[0]
    assert tune.choice(PROBLEM) not in wrong
    wrong.add(dispatch.choose(PROBLEM))
    assert not measuring.measure_all([PROBLEM], "cpu", 0.05, lambda line, style: lines.append(line))
    assert "WRONG" in lines[1]


def test_a_certain_gain_is_kept(file, monkeypatch):
    ratio = Ratio(1.5, 1.4, 1.6, "faster")
    outcome = measuring.Outcome(PROBLEM, untuned(PROBLEM), another(PROBLEM), ratio, ratio, ())
    monkeypatch.setattr(measuring, "measure", lambda *_: outcome)
    assert measuring.measure_all([PROBLEM], "cpu", 1, lambda line, style: None)
    assert tune.choice(PROBLEM) == another(PROBLEM)


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.9, 1.6, "undecided"), (0.99, 1.01, "same")])
def test_an_uncertain_gain_is_not_kept(file, monkeypatch, low, high, verdict):
    ratio = Ratio(1.0, low, high, verdict)
    outcome = measuring.Outcome(PROBLEM, untuned(PROBLEM), another(PROBLEM), ratio, ratio, ())
    monkeypatch.setattr(measuring, "measure", lambda *_: outcome)
    assert measuring.measure_all([PROBLEM], "cpu", 1, lambda line, style: None)
    assert not file.exists()


def test_a_problem_is_measured(file):
    torch.set_num_threads(1)
    outcome = measuring.measure(PROBLEM, "cpu", 0.05)
    assert outcome.before == untuned(PROBLEM)
    assert outcome.fastest in able(PROBLEM)
    assert outcome.wrong == ()
    for ratio in (outcome.gain, outcome.to_vendor):
        assert 0 < ratio.low <= ratio.value <= ratio.high
    assert not file.exists()


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_the_command(file, direction):
    problem = replace(PROBLEM, direction=direction)
    result = CliRunner().invoke(main, ["tune", f"{problem}", "--budget", "0.05", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert str(problem) in result.output
    assert "to the vendor" in result.output
    assert (" kept" in result.output) == file.exists()
    testing.check(problem)
