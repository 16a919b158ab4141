"""`make gpu` without a GPU: its stages' commands exist; what becomes of stages that end, fail and take too long."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cnnkern.bench import gpu
from cnnkern.bench.gpu import STAGES, Stage
from cnnkern.cli import main

HELLO = ("-c", "import os, sys; print('hello', *sys.argv[1:], os.environ.get('WHERE'))")
FAILS = ("-c", "print('here is why'); raise SystemExit(3)")
HANGS = ("-c", "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')")


def run(tmp_path, monkeypatch, *stages, only=()):
    monkeypatch.setattr(gpu, "STAGES", stages)
    result = CliRunner().invoke(gpu.main, ["--out", str(tmp_path), *only])
    return result.exit_code, result.output


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.command[:2] == ("-m", "cnnkern")], ids=str)
def test_options_are_those_of_the_commands(stage):
    result = CliRunner().invoke(main, [*stage.command[2:], "--help"])
    assert result.exit_code == 0, result.output


def test_a_stage_that_ended_well_is_not_run_again(tmp_path, monkeypatch):
    stage = Stage("one", "says hello", HELLO, environment={"WHERE": "{out}"})
    assert "exit 0" in run(tmp_path, monkeypatch, stage)[1]
    assert (tmp_path / "one.log").read_text() == f"hello {tmp_path}\n"
    assert run(tmp_path, monkeypatch, stage) == (0, "")


def test_one_that_failed_is_and_does_not_keep_the_others_from_running(tmp_path, monkeypatch):
    stages = Stage("bad", "fails", FAILS), Stage("good", "says hello", HELLO)
    code, output = run(tmp_path, monkeypatch, *stages)
    assert code == 1
    assert "here is why" in output
    assert [path.name for path in tmp_path.glob("*.done")] == ["good.done"]
    assert "good" not in run(tmp_path, monkeypatch, *stages)[1]


def test_one_whose_program_is_not_here_is_skipped(tmp_path, monkeypatch):
    code, output = run(tmp_path, monkeypatch, Stage("deep", "looks", HELLO, ("no-such-program",)))
    assert code == 0
    assert "skipped, no-such-program is not here" in output
    assert not list(tmp_path.iterdir())


def test_shards_are_told_their_part_and_share_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 3)
    assert run(tmp_path, monkeypatch, Stage("all", "say hello", HELLO, sharded=True))[0] == 0
    lines = [f"hello --shard {i}/3 None" for i in range(3)]
    assert (tmp_path / "all.log").read_text().splitlines() == lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.done", "all.log"]


def test_one_that_takes_too_long_may_write_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "MINUTES", 0.2)
    monkeypatch.setattr(gpu, "GRACE", 5)
    code, output = run(tmp_path, monkeypatch, Stage("long", "hangs", HANGS))
    assert code == 1
    assert "time was up" in output
    assert "saved" in output
    assert not (tmp_path / "long.done").exists()


def test_a_shard_has_its_own_tests(tmp_path):
    """pytest's own way of it, with tests that need no GPU."""
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "gpu" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("def test_a(): pass\ndef test_b(): pass\ndef test_c(): pass\n")
    options = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), "--collect-only"]
    told = [subprocess.run([*options, "--shard", f"{i}/2"], capture_output=True, text=True).stdout for i in (0, 1)]
    assert ["::test_a" in text and "::test_c" in text for text in told] == [True, False]
    assert ["::test_b" in text for text in told] == [False, True]
