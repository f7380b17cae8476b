"""Commands that two processes run together write and print once what one process does."""

import importlib
import json
import os
import socket
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import models
import pytest
import sensitivities
import torch
import torch.distributed as dist
from commands import invoke
from processes import run_two
from safetensors.torch import load_file

from qdqpatch.cli.processes import joined
from qdqpatch.data.batches import TextBatches
from qdqpatch.errors import DataError

CONVERT = ("--calib", "texts.txt", "--batch-size", 2, "--samples", 64)
TRAIN = ("--data", "dev.tsv", "--epochs", 2, "--batch-size", 4, "--refine", 0, "--max-length", 16)
SENSITIVITY = ("--data", "dev.tsv", "--json", "--max-drop", 50, "--batch-size", 4, "--samples", 30)
OPTIMIZE = ("--data", "texts.txt", "--max-drop", 50, "--batch-size", 2, "--shape", "1x8", "--json")

COMMANDS: dict[str, tuple[object, ...]] = {
    "convert": ("convert", "float", "both", *CONVERT),
    "eval": ("eval", "float", "one", "--data", "dev.tsv", "--json", "--batch-size", 5),
    "sensitivity": ("sensitivity", "one", *SENSITIVITY),
    "train": ("train", "float", "trained", *TRAIN),
    "optimize": ("optimize", "float", "best", *OPTIMIZE),
    "one fails": ("convert", "float", "failed", *CONVERT),
    "all fail": ("convert", "nowhere", "failed", *CONVERT),
    "alone": ("inspect", "float"),
}

pytestmark = pytest.mark.slow  # two processes have to import everything


def work(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    results: dict[str, Any] = {"threads": threads_left()}
    for number, (name, command) in enumerate(COMMANDS.items()):
        os.environ["MASTER_PORT"] = os.environ[f"PORT{number}"]
        breaks = mock.patch.object(TextBatches, "__iter__", broken)
        with breaks if name == "one fails" and rank else nullcontext():
            result = invoke(*command)
        if dist.is_initialized():  # a process that fails ends, and with it what binds it to the other
            dist.destroy_process_group()
        results[name] = result.exit_code, result.stdout, result.stderr
        (folder / f"{number}.{rank}").touch()
        while not (folder / f"{number}.{1 - rank}").exists():
            time.sleep(0.01)
    (folder / f"results{rank}").write_text(json.dumps(results), encoding="utf-8")


def threads_left() -> list[str]:
    """Import what takes the group as a default while there is one; return gloo's threads afterwards."""
    holder = "torch.distributed.nn.functional"
    sys.modules.pop(holder, None)
    os.environ["MASTER_PORT"] = os.environ[f"PORT{len(COMMANDS)}"]
    with joined("convert"):
        importlib.import_module(holder)
    names = (file.read_text(encoding="utf-8") for file in Path("/proc/self/task").glob("*/comm"))
    return [name for name in names if "gloo" in name]


def broken(self: TextBatches) -> Any:
    raise DataError("This disk is gone.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands ran: the checkpoint `float`, data, and what one process made of both, `one`."""
    folder = tmp_path_factory.mktemp("together")
    sensitivities.write_classifier(folder / "float")
    sensitivities.write_data(folder / "dev.tsv", sensitivities.labelled())
    (folder / "texts.txt").write_text("\n".join(sensitivities.texts(64)), encoding="utf-8")
    assert invoke("convert", folder / "float", folder / "one", *at(folder, CONVERT)).exit_code == 0
    run_two(__file__, folder, MASTER_ADDR="127.0.0.1", WORLD_SIZE="2", **free_ports(len(COMMANDS) + 1))
    return folder


def free_ports(count: int) -> dict[str, str]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {f"PORT{number}": str(one.getsockname()[1]) for number, one in enumerate(sockets)}
    finally:
        for one in sockets:
            one.close()


def at(folder: Path, arguments: tuple[object, ...]) -> list[object]:
    """Return arguments with the paths of the files that lie in a folder."""
    return [folder / str(one) if (folder / str(one)).exists() else one for one in arguments]


def results(folder: Path, name: str) -> list[tuple[int, str, str]]:
    """Return what each process ended with, and what it said: on standard output, on standard error."""
    found = [json.loads((folder / f"results{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
    return [tuple(one[name]) for one in found]


def succeeded(folder: Path, name: str) -> str:
    """Return what the first process printed; the other one is silent."""
    (code, printed, _), other = results(folder, name)
    assert code == 0
    assert other == (0, "", "")
    return printed


def test_convert_writes_what_one_process_writes(folder: Path) -> None:
    succeeded(folder, "convert")
    for file in ("model.safetensors", "calibration.safetensors"):
        models.assert_equal(load_file(folder / "both" / file), load_file(folder / "one" / file))


def test_eval_counts_every_example_once(folder: Path) -> None:
    found = json.loads(succeeded(folder, "eval"))
    alone = invoke(*at(folder, COMMANDS["eval"]))
    expected = json.loads(alone.stdout.replace(f"{folder}{os.sep}", ""))
    for report in (found, expected):
        for row in report["results"]:
            del row["seconds"]
    assert found == expected


def test_sensitivity_finds_the_same_units(folder: Path) -> None:
    found = json.loads(succeeded(folder, "sensitivity"))
    expected = json.loads(invoke(*at(folder, COMMANDS["sensitivity"])).stdout)
    assert found["search"] == expected["search"]
    units, others = (
        {unit["name"]: unit["cost"] for unit in report["costs"]["units"]} for report in (found, expected)
    )
    assert units == pytest.approx(others, rel=1e-9)  # float64 sums of the same terms in another order


def test_train_writes_once(folder: Path) -> None:
    assert "trained" in succeeded(folder, "train")
    assert load_file(folder / "trained" / "model.safetensors")
    assert not (folder / "trained.training").exists()
    stages = json.loads((folder / "trained" / "training.json").read_text(encoding="utf-8"))["stages"]
    assert [stage["name"] for stage in stages] == ["float", "calibrated", "trained"]


def test_optimize_finds_the_same_model(folder: Path) -> None:
    found = json.loads(succeeded(folder, "optimize"))
    arguments = at(folder, ("float", *OPTIMIZE))
    alone = invoke("optimize", arguments[0], folder / "alone", *arguments[1:])
    expected = json.loads(alone.stdout)
    for report in (found, expected):
        for rung in report["rungs"]:
            del rung["seconds"], rung["speedup"], rung["latency_ms"]
    assert found == expected
    written, other = (load_file(folder / name / "model.safetensors") for name in ("best", "alone"))
    models.assert_equal(written, other)
    assert (folder / "best" / "onnx" / "model.onnx").is_file()


def test_one_that_fails_ends_all_and_says_why(folder: Path) -> None:
    (code, _, said), (other_code, _, other_said) = results(folder, "one fails")
    assert (code, other_code) == (1, 1)
    assert other_said.splitlines()[-1] == "Error: This disk is gone."
    assert "Error" not in said
    assert not (folder / "failed").exists()


def test_what_fails_everywhere_is_said_once(folder: Path) -> None:
    found = results(folder, "all fail")
    assert [code for code, _, _ in found] == [1, 1]
    assert sum("nowhere" in said for _, _, said in found) == 1


def test_what_binds_the_processes_is_gone_before_they_end(folder: Path) -> None:
    """Threads that are left when a process ends can abort it, after all of its work."""
    for rank in (0, 1):
        assert json.loads((folder / f"results{rank}").read_text(encoding="utf-8"))["threads"] == []


def test_a_command_for_one_process_says_so(folder: Path) -> None:
    (code, _, said), other = results(folder, "alone")
    assert (code, other) == (2, (2, "", ""))
    assert "inspect runs in one process" in said


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
