"""cnnkern train, as it is called; killed and called again."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner

from cnnkern.cli import main
from cnnkern.training import checkpoint
from cnnkern.training.cli import usual_size

TRAIN = ["train", "lenet5", "--recipe", "polyak", "--batch", "256", "--size", "20"]


def run(*arguments):
    result = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.output


def weights(out):
    state = checkpoint.load(out / "checkpoint.pt")
    return {**state["model"], **{f"averaged.{name}": value for name, value in state["averaged"].items()}}


def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path):
    options = [*TRAIN, "--epochs", "6", "--out"]
    command = [sys.executable, "-c", "from cnnkern.cli import main; main()", *options, str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    history = tmp_path / "killed" / "history.csv"
    deadline = time.monotonic() + 240
    while not history.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    stopped_after = len(checkpoint.load(tmp_path / "killed" / "checkpoint.pt")["history"])
    assert 1 <= stopped_after < 6

    assert run(*options, tmp_path / "killed", "--resume")[0] == 0
    code, output = run(*options, tmp_path / "whole")
    assert code == 0
    assert output.count("epoch  ") == 6
    assert "test loss" in output
    resumed, whole = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_checks_by_command():
    code, output = run("train", "lenet5", "--check", "--size", "20")
    assert code == 0
    assert output.count("right ") == len(output.splitlines()) == 15
    assert "first loss" in output


@pytest.mark.parametrize(
    ("net", "source", "size"),
    [("lenet5", "digits", 32), ("resnet20", "digits", 16), ("vgg11", "digits", 32), ("inception_v3", "folder", 299)],
)
def test_usual_sizes(net, source, size):
    assert usual_size(net, source) == size


def test_search_by_command():
    small = ["--size", 16, "--epochs", 1, "--batch", 512, "--option", "activation=maxout"]
    code, output = run("train", "lenet5", "--search", 2, *small)
    assert code == 0
    *trials, best = output.splitlines()
    assert len(trials) == 2
    assert best.removeprefix("best on the validation set: ") in "".join(trials)


def images(folder, greys):
    from PIL import Image

    for grey in greys:
        (folder / f"grey {grey}").mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (24, 24), (grey + number,) * 3).save(folder / f"grey {grey}" / f"{number}.png")
    return folder


def test_a_new_classifier_on_trained_layers(tmp_path):
    options = ["train", "lenet5", "--size", 20, "--epochs", 1]
    two, three = images(tmp_path / "two", [40, 200]), images(tmp_path / "three", [20, 120, 220])
    assert run(*options, "--data", two, "--out", tmp_path / "first")[0] == 0
    start = ["--pretrained", tmp_path / "first" / "checkpoint.pt", "--recipe", "transfer"]
    code, output = run(*options, "--data", three, "--out", tmp_path / "second", *start)
    assert code == 0
    assert "drawn anew: classifier.4.weight, classifier.4.bias" in output
    first, second = (checkpoint.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("first", "second"))
    assert [
        name for name in first if first[name].shape != second[name].shape or not first[name].equal(second[name])
    ] == [
        "classifier.4.weight",
        "classifier.4.bias",
    ]
    code, output = run(*options, *start)
    assert code == 1
    assert "size mismatch" in output  # the digits have one channel, the images three


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet"], "did you mean lenet5"),
        (["lenet5", "--option", "width=2"], "lenet5 has no option width: it takes activation"),
        (["lenet5", "--option", "width"], "is not like drop_path=0.2"),
        (["lenet5", "--data", "nowhere"], "neither 'digits' nor a folder"),
        (["lenet5", "--resume", "--out", "nowhere"], "nowhere/checkpoint.pt"),
        (["lenet5", "--recipe", "none"], "is not one of"),
        (["lenet5", "--recipe", "snapshots", "--epochs", "7"], "do not divide"),
    ],
    ids=["network", "unknown option", "option", "data", "checkpoint", "recipe", "cycles"],
)
def test_a_mistake_is_a_message(arguments, message):
    code, output = run("train", *arguments)
    assert code != 0
    assert message in output
