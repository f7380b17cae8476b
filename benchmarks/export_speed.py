"""How fast exported int8 BERT-base runs, beside fp32 and beside what other tools make of the same model.

    python benchmarks/export_speed.py [--tables onnxruntime openvino rules operators] [--ours]

All files of an engine run in one process in turn: one run to warm the caches that another contender's
weights have emptied, then three timed ones. BERT-base has random weights, which cost as much as trained ones.
The floor is the time of the Linears' integer GEMMs alone, in ONNX Runtime. Then one rule after the other is
taken from the targets, and the engines' profilers say where the time goes. `--tables` chooses, and `--ours`
leaves the peers out. "Smoothed" is with factors for the channels of all that Linears and residual
adds read, as `--smooth-inputs --smooth-residuals` finds on a model with outliers.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import peers
import profiles
import torch
from common import BERT_BASE, Row, in_turn, prepare, quiet, show, surroundings
from gemm_floor import gemm_seconds
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

import qdqpatch
from qdqpatch.calibration.residual_smoothing import operands_to_smooth
from qdqpatch.engines.sessions import ONNX_RUNTIME
from qdqpatch.exporter.asked import weight_method_for
from qdqpatch.exporter.export import prepare_export
from qdqpatch.exporter.options import ExportOptions
from qdqpatch.exporter.rules import push_quantize
from qdqpatch.exporter.rules.base import RewriteRule
from qdqpatch.exporter.rules.integer_attention import IntegerAttention
from qdqpatch.exporter.rules.integer_linear import IntegerLinear
from qdqpatch.exporter.rules.qdq_attention import QDQAttention
from qdqpatch.exporter.rules.qdq_linear import QDQLinear
from qdqpatch.exporter.rules.sum_before_norm import SumBeforeNorm
from qdqpatch.exporter.targets import onnxruntime as ort_target
from qdqpatch.exporter.tracing import Traces
from qdqpatch.nn.linear import QuantLinear

SHAPES = ((1, 128), (8, 128), (1, 384))
COLUMNS = ("", *(f"{batch}x{length}" for batch, length in SHAPES))
ROUNDS = 7
THREADS = 2
SETTINGS = {
    "INFERENCE_NUM_THREADS": THREADS,
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "bf16",
}
"""For OpenVINO; bf16 for what is not int8, where the CPU has it."""
TO_PEERS = "to the best peer"
FP32 = "fp32"
PRESETS = {"qdqpatch": "qdqbert", "qdqpatch, smoothed": "qdqbert", "qdqpatch, no-residual": "no-residual"}
SMOOTHED = "smoothed"

Feed = dict[str, npt.NDArray[np.int64]]
Runs = Mapping[str, Callable[[], object]]


def main() -> None:
    """Make every contender's file, and print a table for each engine and one for the rules."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--ours", action="store_true")
    arguments = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as name:
        files = make_files(BERT_BASE, Path(name), not arguments.ours, "rules" in arguments.tables)
        for table in arguments.tables:
            TABLES[table](files)
    versions = (f"{engine} {importlib.metadata.version(engine)}" for engine in ("onnxruntime", "openvino"))
    print(f"{surroundings()}, {', '.join(versions)}, {THREADS} threads")


ALL = "all rules"
PUSH = "quantize before transposing"


@dataclasses.dataclass
class Files:
    """The contenders' files, by name: of each engine, and of its target with a rule less."""

    onnxruntime: dict[str, Path]
    openvino: dict[str, Path]
    onnxruntime_without: dict[str, Path]


def make_files(
    config: BertConfig, folder: Path, with_peers: bool = True, without_rules: bool = True
) -> Files:
    """Export one model in all ways, and in the peers' and with a rule less too unless told otherwise."""
    torch.manual_seed(0)
    model, feed = BertForSequenceClassification(config).eval(), feed_of(config, 2, 32)
    floating = float_file(model, folder / "fp32.onnx", feed)
    files = Files(
        {FP32: floating, **(dict(peers.make(peers.ONNX_RUNTIME, floating, feed)) if with_peers else {})},
        {FP32: floating, **(dict(peers.make(peers.OPENVINO, floating, feed)) if with_peers else {})},
        {},
    )
    state = model.state_dict()
    for name, preset in PRESETS.items():
        model = BertForSequenceClassification(config).eval()
        model.load_state_dict(state)
        qdqpatch.quantize(model, qdqpatch.QDQConfig.preset(preset))
        if SMOOTHED in name:
            multiply(model)
        weights = weight_method_for("onnxruntime", None)
        qdqpatch.calibrate(model, [tensors(feed)], method="max", weight_method=weights)
        traces = Traces()
        files.onnxruntime[name] = file_of(model, folder / f"{name}-onnxruntime", "onnxruntime", traces)
        files.openvino[name] = file_of(model, folder / f"{name}-openvino", "openvino", traces)
        if name == "qdqpatch" and without_rules:
            files.onnxruntime_without[ALL] = files.onnxruntime[name]
            export_without(model, folder, files, traces)
    return files


def multiply(model: PreTrainedModel) -> None:
    """Give Linears and residual adds factors for the channels that they read, as smoothing a BERT would."""
    for path, module in model.named_modules():
        if isinstance(module, QuantLinear) and not path.endswith("attention.output.dense"):
            module.scale_input(torch.linspace(0.5, 1, module.in_features))
    for operand in operands_to_smooth(model).values():
        operand.load_input_scale(torch.linspace(0.5, 1, model.config.hidden_size))


def export_without(model: PreTrainedModel, folder: Path, files: Files, traces: Traces) -> None:
    """Export a model with one rule after the other taken from the target."""
    for number, (left_out, passes) in enumerate(without_a_rule().items()):
        target = dataclasses.replace(ort_target.TARGET, passes=passes)
        moves = () if left_out == PUSH else push_quantize.MOVES
        with (
            mock.patch.object(ort_target, "TARGET", target),
            mock.patch.object(push_quantize, "MOVES", moves),
        ):
            out = folder / f"without-{number}"
            files.onnxruntime_without[left_out] = file_of(model, out, "onnxruntime", traces)


def float_file(model: PreTrainedModel, path: Path, feed: Feed) -> Path:
    """Write the float model as ONNX, in one file: not all peers read external data."""
    axes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in feed}
    with quiet():
        program = torch.onnx.export(
            model, kwargs=tensors(feed), dynamic_shapes=axes, opset_version=20, verbose=False
        )
    program.save(path, external_data=False)
    return path


def file_of(model: PreTrainedModel, out: Path, target: str, traces: Traces) -> Path:
    """Export a model and return what the engine loads."""
    out.mkdir()
    return prepare_export(model, target, ExportOptions(check=False), traces)(out, out).file


def tensors(feed: Feed) -> dict[str, torch.Tensor]:
    """Return the inputs for torch."""
    return {name: torch.from_numpy(array) for name, array in feed.items()}


def without_a_rule() -> dict[str, tuple[tuple[RewriteRule, ...], ...]]:
    """Return the ONNX Runtime target's passes with one rule taken out or exchanged for its Q/DQ form."""
    expand, last = ort_target.TARGET.passes

    def exchanged(old: type, new: RewriteRule) -> tuple[RewriteRule, ...]:
        return tuple(new if isinstance(rule, old) else rule for rule in expand)

    assert any(isinstance(rule, SumBeforeNorm) for rule in last)
    return {
        "Linears as MatMulIntegerToFloat": (exchanged(IntegerLinear, QDQLinear()), tuple(last)),
        "attention as MatMulIntegerToFloat": (
            exchanged(IntegerAttention, QDQAttention()),
            tuple(last),
        ),
        "Sum before LayerNormalization": (tuple(expand), ()),
        PUSH: (tuple(expand), tuple(last)),
    }


def show_onnxruntime(files: Files) -> None:
    """Print how fast ONNX Runtime runs every contender's file, and the floor."""
    floor = [f"{gemm_seconds(BERT_BASE, shape, THREADS, ROUNDS) * 1e3:.1f} ms" for shape in SHAPES]
    rows = compare(files.onnxruntime, onnxruntime_run)
    show("ONNX Runtime", (*COLUMNS, TO_PEERS), [*rows, ("floor: the Linears' int8 GEMMs", *floor, "")])


def show_openvino(files: Files) -> None:
    """Print how fast OpenVINO runs them."""
    show("OpenVINO, static shape", (*COLUMNS, TO_PEERS), compare(files.openvino, openvino_run))


def show_rules(files: Files) -> None:
    """Print how fast ONNX Runtime runs our file with a rule less."""
    rows = compare(files.onnxruntime_without, onnxruntime_run, first=ALL)
    show("ONNX Runtime, without a rule", COLUMNS, [row[:-1] for row in rows])


def show_operators(files: Files) -> None:
    """Print where the time of our file goes in both engines."""
    for title, engine in (("ONNX Runtime", "onnxruntime"), ("OpenVINO", "openvino")):
        found = [profile(files, shape, engine) for shape in SHAPES]
        show(f"{title}, per operator", COLUMNS, profile_rows(found))


TABLES = {
    "onnxruntime": show_onnxruntime,
    "openvino": show_openvino,
    "rules": show_rules,
    "operators": show_operators,
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
        others = [file for file in files if file not in PRESETS and file != FP32]
        best = (
            [min(found[other] for other in others) / found[name] for found in medians.values()]
            if others
            else []
        )
        ratio = ", ".join(f"{speedup:.2f}" for speedup in best) if name in PRESETS else ""
        rows.append((name, *cells, ratio))
    return rows


def profile(files: Files, shape: tuple[int, int], engine: str) -> profiles.Profile:
    """Return where the time of our file goes in an engine."""
    feed = feed_of(BERT_BASE, *shape)
    if engine == "onnxruntime":
        return profiles.onnxruntime(files.onnxruntime["qdqpatch"], feed, THREADS)
    return profiles.openvino(files.openvino["qdqpatch"], shape, feed, SETTINGS)


def profile_rows(found: Sequence[profiles.Profile]) -> list[Row]:
    """Return a row for each operator that takes at least 1% at a shape."""
    totals = [sum(profile.values()) for profile in found]
    operators = dict.fromkeys(operator for profile in found for operator in profile)
    shares = {
        operator: [profile.get(operator, 0.0) / total for profile, total in zip(found, totals, strict=True)]
        for operator in operators
    }
    rows = [
        (name, *(f"{share:.1%}" for share in share_of))
        for name, share_of in shares.items()
        if max(share_of) >= 0.01
    ]
    return [*rows, ("milliseconds in all", *(f"{total:.1f}" for total in totals))]


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
    request = core.compile_model(model, "CPU", SETTINGS).create_infer_request()
    return lambda: request.infer(feed)


def feed_of(config: BertConfig, batch: int, length: int) -> Feed:
    """Return inputs without padding."""
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


if __name__ == "__main__":
    main()
