"""How fast exported int8 BERT-base runs, beside fp32 and beside what other tools make of the same model.

    python benchmarks/export_speed.py

All files of an engine run in one process in turn: one run to warm the caches that another contender's
weights have emptied, then three timed ones. BERT-base has random weights, which cost as much as trained ones.
The floor is the time of the Linears' integer GEMMs alone, in ONNX Runtime. The last table takes one rule
after the other from the ONNX Runtime target.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
import peers
import torch
from common import BERT_BASE, Row, prepare, quiet, show, surroundings
from onnx import TensorProto, helper, numpy_helper
from transformers import BertConfig, BertForSequenceClassification

import qdqpatch
from qdqpatch.engines import ONNX_RUNTIME
from qdqpatch.exporter.rules import push_quantize
from qdqpatch.exporter.rules.base import Rule
from qdqpatch.exporter.rules.fold_scaling import FoldScaling
from qdqpatch.exporter.rules.integer_attention import IntegerAttention
from qdqpatch.exporter.rules.integer_linear import IntegerLinear
from qdqpatch.exporter.rules.qdq_attention import QDQAttention
from qdqpatch.exporter.rules.qdq_linear import QDQLinear
from qdqpatch.exporter.rules.sum_before_norm import SumBeforeNorm
from qdqpatch.exporter.targets import onnxruntime as target_module

SHAPES = ((1, 128), (8, 128), (1, 384))
ROUNDS = 7
THREADS = 2
PRECISION = "bf16"
"""What OpenVINO computes the rest in, where the CPU can."""
FP32 = "fp32"
PRESETS = {"qdqpatch": "qdqbert", "qdqpatch, no-residual": "no-residual"}

Feed = dict[str, npt.NDArray[np.int64]]
Runs = Mapping[str, Callable[[], object]]


def main() -> None:
    """Make every contender's file, and print a table for each engine and one for the rules."""
    prepare()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx_files, openvino_files, variants = make_files(BERT_BASE, folder)
        columns = ("", *(f"{batch}x{length}" for batch, length in SHAPES), "to the best peer")
        rows = compare(onnx_files, lambda path, shape: onnxruntime_run(path, shape))
        floor = [f"{seconds * 1e3:.1f} ms" for seconds in map(gemm_seconds, SHAPES)]
        show("ONNX Runtime", columns, [*rows, ("floor: the Linears' int8 GEMMs", *floor, "")])
        show("OpenVINO, static shape", columns, compare(openvino_files, openvino_run))
        rows = compare(variants, lambda path, shape: onnxruntime_run(path, shape), first="all rules")
        show("ONNX Runtime, without a rule", (*columns[:-1],), [row[:-1] for row in rows])
    versions = (f"{each} {importlib.metadata.version(each)}" for each in ("onnxruntime", "openvino"))
    print(f"{surroundings()}, {', '.join(versions)}, {THREADS} threads")


def make_files(config: BertConfig, folder: Path) -> tuple[dict[str, Path], dict[str, Path], dict[str, Path]]:
    """Return the files for ONNX Runtime and for OpenVINO, and those with a rule less, by name."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    feed = feed_of(config, 2, 32)
    batch = {name: torch.from_numpy(array) for name, array in feed.items()}
    floating = folder / "fp32.onnx"
    axes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in batch}
    with quiet():
        program = torch.onnx.export(model, kwargs=batch, dynamic_shapes=axes, opset_version=20, verbose=False)
    program.save(floating, external_data=False)  # the peers do not read external data everywhere
    onnx_files, openvino_files = {FP32: floating}, {FP32: floating}
    onnx_files |= dict(peers.make(peers.ONNX_RUNTIME, floating, feed))
    openvino_files |= dict(peers.make(peers.OPENVINO, floating, feed))
    state, variants = model.state_dict(), {}
    for name, preset in PRESETS.items():
        quantized = qdqpatch.quantize(
            BertForSequenceClassification(config).eval(), qdqpatch.QDQConfig.preset(preset)
        )
        quantized.load_state_dict(state)
        qdqpatch.calibrate(quantized, [batch], method="max")
        onnx_files[name] = qdqpatch.export(
            quantized, folder / f"{preset}-ort", "onnxruntime", check=False
        ).file
        openvino_files[name] = qdqpatch.export(
            quantized, folder / f"{preset}-ov", "openvino", check=False
        ).file
        if preset == "qdqbert":
            variants["all rules"] = onnx_files[name]
            for number, (left_out, passes) in enumerate(without_a_rule().items()):
                target = dataclasses.replace(target_module.TARGET, passes=passes)
                moves = () if left_out == PUSH else push_quantize.MOVES
                with (
                    mock.patch.object(target_module, "TARGET", target),
                    mock.patch.object(push_quantize, "MOVES", moves),
                ):
                    out = folder / f"variant-{number}"
                    variants[left_out] = qdqpatch.export(quantized, out, "onnxruntime", check=False).file
    return onnx_files, openvino_files, variants


PUSH = "quantize before transposing"


def without_a_rule() -> dict[str, tuple[tuple[Rule, ...], ...]]:
    """Return the ONNX Runtime target's passes with one rule taken out or exchanged for its Q/DQ form."""
    fold, expand, last = target_module.TARGET.passes

    def exchanged(old: type, new: Rule) -> tuple[Rule, ...]:
        return tuple(new if isinstance(rule, old) else rule for rule in expand)

    assert any(isinstance(rule, FoldScaling) for rule in fold)
    assert any(isinstance(rule, SumBeforeNorm) for rule in last)
    return {
        "1/sqrt(d) in the query projection": ((), tuple(expand), tuple(last)),
        "Linears as MatMulIntegerToFloat": (tuple(fold), exchanged(IntegerLinear, QDQLinear()), tuple(last)),
        "attention as MatMulIntegerToFloat": (
            tuple(fold),
            exchanged(IntegerAttention, QDQAttention()),
            tuple(last),
        ),
        "Sum before LayerNormalization": (tuple(fold), tuple(expand), ()),
        PUSH: (tuple(fold), tuple(expand), tuple(last)),
    }


def compare(
    files: Mapping[str, Path],
    load: Callable[[Path, tuple[int, int]], Callable[[], object]],
    first: str = FP32,
) -> list[Row]:
    """Return a row for each file: time and speed-up over the first at each shape, ratio to the best peer."""
    medians = {
        shape: in_turn({name: load(path, shape) for name, path in files.items()}, ROUNDS) for shape in SHAPES
    }
    rows = []
    for name in files:
        cells = [
            f"{found[name] * 1e3:.1f} ms ({found[first] / found[name]:.2f}x)" for found in medians.values()
        ]
        others = [each for each in files if each not in PRESETS and each != FP32]
        best = (
            [min(found[each] for each in others) / found[name] for found in medians.values()]
            if others
            else []
        )
        ratio = ", ".join(f"{each:.2f}" for each in best) if name in PRESETS else ""
        rows.append((name, *cells, ratio))
    return rows


def in_turn(runs: Runs, rounds: int) -> dict[str, float]:
    """Return the median seconds of a run of each contender: in turn, one run to warm up and three timed."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            for _ in range(3):
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def onnxruntime_run(path: Path, shape: tuple[int, int]) -> Callable[[], object]:
    """Load a file in ONNX Runtime and return a function that runs it once."""
    session, feed = ONNX_RUNTIME.load(path, THREADS), feed_of(BERT_BASE, *shape)
    return lambda: session.run(feed)


def openvino_run(path: Path, shape: tuple[int, int]) -> Callable[[], object]:
    """Compile a file for one shape in OpenVINO, and return a function that runs it once."""
    import openvino

    core, feed = openvino.Core(), feed_of(BERT_BASE, *shape)
    model = core.read_model(path)
    model.reshape({port.get_any_name(): list(shape) for port in model.inputs})
    request = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": THREADS,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISION,
        },
    ).create_infer_request()
    return lambda: request.infer(feed)


def feed_of(config: BertConfig, batch: int, length: int) -> Feed:
    """Return inputs without padding."""
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def gemm_seconds(shape: tuple[int, int]) -> float:
    """Return the seconds of the integer GEMMs of all Linears at a shape, each measured by itself."""
    rows, hidden, wide = shape[0] * shape[1], BERT_BASE.hidden_size, BERT_BASE.intermediate_size
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for inner, outer in ((hidden, hidden), (hidden, wide), (wide, hidden)):
            path = Path(folder) / f"{inner}-{outer}.onnx"
            _gemm(path, rows, inner, outer)
            session = ONNX_RUNTIME.load(path, THREADS)
            feed = {"a": np.random.default_rng(0).integers(0, 255, (rows, inner), np.uint8)}
            runs[inner, outer] = lambda session=session, feed=feed: session.run(feed)
        medians = in_turn({str(key): run for key, run in runs.items()}, ROUNDS)
    square, up, down = medians.values()
    return BERT_BASE.num_hidden_layers * (4 * square + up + down)


def _gemm(path: Path, rows: int, inner: int, outer: int) -> None:
    weight = np.random.default_rng(0).integers(-127, 127, (inner, outer), np.int8)
    constants = {"b": weight, "scale": np.float32(0.01), "az": np.uint8(128), "bz": np.int8(0)}
    graph = helper.make_graph(
        [
            helper.make_node(
                "MatMulIntegerToFloat",
                ["a", "b", "scale", "scale", "az", "bz"],
                ["y"],
                domain="com.microsoft",
            )
        ],
        "gemm",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, outer])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


if __name__ == "__main__":
    main()
