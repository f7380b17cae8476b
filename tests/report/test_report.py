"""What is known of every quantizer of a calibrated checkpoint."""

import shutil
from pathlib import Path

import models
import pytest
import torch
from reports import HEAD, SHARE_TOLERANCE, report, reports_of
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from qdqpatch.calibration import Statistics, collect
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.report import quantizers
from qdqpatch.report.formatting import decibels_text, range_text, share_text
from qdqpatch.report.quality import of_tensor
from qdqpatch.report.quantizers import report_quantizers, worst_first


def test_every_quantizer_of_a_checkpoint_is_judged_by_what_it_quantizes(calibrated_folder: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(calibrated_folder)
    seen: dict[str, list[Tensor]] = {}
    for path, module in quantizers_of(model):
        module._if_quant = False  # as in the collection pass: the float model's tensors
        module.register_forward_hook(
            lambda _, inputs, output, path=path: seen.setdefault(path, []).append(inputs[0].flatten())
        )
    batches = [models.inputs(HEAD, seed, length=16, padded=False) for seed in range(20)]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    source = open_checkpoint(str(calibrated_folder))
    found = collect(models.uncalibrated(HEAD), batches)
    reports = report_quantizers(source, source.plan(), source.ranges(), found)
    assert [row.path for row in reports if row.quality is None] == []
    for row in reports:
        module = model.get_submodule(row.path)
        is_weight = row.path.endswith("_weight_quantizer")
        weight = model.get_parameter(row.path.replace("._weight_quantizer", ".weight")) if is_weight else None
        exact = of_tensor(
            torch.cat(seen[row.path]) if weight is None else weight.detach(), module.amax, module
        )
        assert torch.equal(row.amax, module.amax)
        if is_weight:
            assert row.quality == exact
            continue
        assert row.quality.clipped_share == pytest.approx(exact.clipped_share, abs=SHARE_TOLERANCE)
        # int8 has a step more on the negative side, which the histogram does not know of, and the ranges
        # are from two batches: where many values are clipped, that is most of the noise.
        assert row.sqnr_db == pytest.approx(exact.sqnr_db, abs=0.5), row.path


def quantizers_of(model: torch.nn.Module) -> list[tuple[str, TensorQuantizer]]:
    return [(path, module) for path, module in model.named_modules() if isinstance(module, TensorQuantizer)]


def test_without_statistics_only_weights_are_judged(calibrated_folder: Path) -> None:
    for row in reports_of(calibrated_folder, with_statistics=False):
        is_weight = row.path.endswith("_weight_quantizer")
        assert (row.quality is not None) == is_weight
        assert row.amax is not None
        assert (share_text(row) != "-") == is_weight


def test_a_quantizer_without_a_range_has_no_figures(tmp_path: Path) -> None:
    models.uncalibrated(HEAD).save_pretrained(tmp_path)
    for row in reports_of(tmp_path):
        assert (row.amax, row.quality, row.sqnr_db) == (None, None, None)
        assert (range_text(row), decibels_text(row)) == ("from each input", "-")


def test_weights_in_a_bin_file_are_judged_alike(calibrated_folder: Path, tmp_path: Path) -> None:
    torch.save(
        AutoModelForMaskedLM.from_pretrained(calibrated_folder).state_dict(), tmp_path / "pytorch_model.bin"
    )
    shutil.copy(calibrated_folder / "config.json", tmp_path)
    found = {row.path: row.quality for row in reports_of(tmp_path)}
    assert found == {row.path: row.quality for row in reports_of(calibrated_folder, with_statistics=False)}


def test_a_factor_on_the_range_counts() -> None:
    settings = QuantizerConfig(scale_amax=0.5)
    assert quantizers._effective(torch.tensor(3.0), settings) == 1.5


def test_worst_first_and_what_is_not_known_last() -> None:
    sqnr = [20.0, None, 5.0, None, 30.0]
    reports = [report(f"q{i}", decibels) for i, decibels in enumerate(sqnr)]
    assert [row.path for row in worst_first(reports)] == ["q2", "q0", "q4", "q1", "q3"]


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0%"), (1e-9, "<0.001%"), (0.0001, "0.010%"), (0.5, "50.000%")]
)
def test_shares_are_written_as_percent(share: float, text: str) -> None:
    assert share_text(report("q", 1.0, share)) == text


def test_statistics_beside_the_weights_do_not_disturb_transformers(
    calibrated_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(
        calibrated_folder, tmp_path / "without", ignore=shutil.ignore_patterns(quantizers.STATISTICS_FILE)
    )
    with_file = AutoModelForMaskedLM.from_pretrained(calibrated_folder, output_loading_info=True)
    without = AutoModelForMaskedLM.from_pretrained(tmp_path / "without", output_loading_info=True)
    models.assert_equal(with_file[0].state_dict(), without[0].state_dict())
    assert with_file[1] == without[1]
    assert len(AutoModel.from_pretrained(calibrated_folder).state_dict()) > 0
    shutil.copytree(calibrated_folder, tmp_path / "again")
    with_file[0].save_pretrained(tmp_path / "again")  # leaves the file there
    with_file[0].save_pretrained(tmp_path / "new")
    models.assert_equal(
        AutoModelForMaskedLM.from_pretrained(tmp_path / "again").state_dict(), without[0].state_dict()
    )
    assert len(Statistics.load(tmp_path / "again" / quantizers.STATISTICS_FILE)) == 28
    assert not (tmp_path / "new" / quantizers.STATISTICS_FILE).exists()
