"""Models of images on the command line: calibrated from a folder, exported, evaluated and timed."""

import json
from pathlib import Path

import family_models as families
import numpy as np
import pytest
import torch
from benches import weigh_nothing
from commands import invoke
from transformers import ViTForImageClassification

from qdqpatch.checkpoint.processor import load_processor
from qdqpatch.data.images import find_images, image_batches, pixels
from qdqpatch.errors import DataError
from qdqpatch.optimizing import ladder
from qdqpatch.optimizing.rungs import Rung

images = pytest.importorskip("PIL.Image")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.usefixtures("traced_once"),
]

LABELS = ("cat", "dog")
ENGINES = ("--engine", "torch", "--engine", "onnxruntime")
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
    "size": {"height": 16, "width": 16},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a classifier, `m`, and images in folders of the classes that it finds in them."""
    root = tmp_path_factory.mktemp("images")
    model = families.build("vit", ViTForImageClassification)
    for name in ("vocab_size", "max_position_embeddings"):  # which no model of images has
        delattr(model.config, name)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: number for number, label in enumerate(LABELS)}
    (root / "m").mkdir()
    (root / "m" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    random = np.random.default_rng(0)
    drawn = [random.integers(0, 256, (20, 30, 3), dtype=np.uint8) // (1 + number) for number in range(8)]
    paths = [root / f"{number}.png" for number in range(8)]
    for path, pixels_ in zip(paths, drawn, strict=True):
        images.fromarray(pixels_).save(path)
    batch = pixels(paths, load_processor(str(root / "m")))
    with torch.no_grad():
        model.classifier.bias -= model(batch).logits.mean(0)
        found = model(batch).logits.argmax(-1).tolist()
    assert {*found} == {0, 1}
    model.save_pretrained(root / "m")
    for path, number in zip(paths, found, strict=True):
        place = root / "data" / LABELS[number] / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    return root


@pytest.fixture(scope="module")
def converted(folder: Path) -> Path:
    """Return the folder beside whose classifier there is its int8 file."""
    arguments = ("--calib", folder / "data", "--method", "max", "--export", "onnxruntime")
    result = invoke("convert", folder / "m", folder / "int8", *arguments)
    assert result.exit_code == 0, result.output
    assert f"Calibrating with 8 of 8 images in {folder / 'data'}." in result.output.replace("\n", " ")
    return folder


def test_it_is_calibrated_from_a_folder_exported_and_evaluated(converted: Path) -> None:
    copied = converted / "int8" / "preprocessor_config.json"
    assert json.loads(copied.read_text()) == PROCESSOR
    models = (converted / "m", converted / "int8")
    result = invoke("eval", *models, *ENGINES, "--data", converted / "data", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["task"], told["examples"], told["metric"]) == ("image-classification", 8, "accuracy")
    engines = [(row["model"], row["engine"]) for row in told["results"]]
    assert engines == [("m", "torch"), ("int8", "torch"), ("int8", "onnxruntime")]
    accuracies = [row["metrics"]["accuracy"] for row in told["results"]]
    assert accuracies[0] == 100
    assert accuracies[1] == accuracies[2]


def test_a_table_names_images_and_a_folder_without_labels_compares(converted: Path) -> None:
    found = find_images(converted / "data")
    rows = [f"{image.path.relative_to(converted)},{image.label}" for image in found]
    (converted / "dev.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    result = invoke("eval", converted / "m", "--data", converted / "dev.csv")
    assert result.exit_code == 0, result.output
    assert "100.00" in result.output
    models = (converted / "m", converted / "int8")
    result = invoke("eval", *models, "--engine", "torch", "--data", converted / "data" / LABELS[0])
    assert result.exit_code == 0, result.output
    assert "Without labels, models are compared with m in torch." in result.stderr


def test_it_is_timed(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weigh_nothing(monkeypatch)
    result = invoke("bench", converted / "m", converted / "int8", *ENGINES, "--rounds", "1", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["results"]
    assert {row["shape"] for row in rows} == {"1x1", "8x1"}
    assert {row["engine"] for row in rows} == {"torch", "onnxruntime"}
    assert all(row["p50_ms"] > 0 for row in rows)


@pytest.mark.parametrize("by_labels", [True, False])
def test_it_is_trained_by_labels_and_by_the_float_model(
    folder: Path, tmp_path: Path, by_labels: bool
) -> None:
    """Without labels from a folder of images alone, by all parts of the loss; and from a checkpoint on."""
    data = folder / "data" if by_labels else folder / "data" / LABELS[0]
    out = tmp_path / "out"
    arguments = ["--data", data, "--method", "max", "--refine", "0", "--epochs", "2", "--batch-size", "3"]
    if not by_labels:
        arguments += ["--distill", "--hidden-states", "1", "--attentions", "1"]
    result = invoke("train", folder / "m", out, *arguments)
    assert result.exit_code == 0, result.output
    told = json.loads((out / "training.json").read_text())
    assert [stage["name"] for stage in told["stages"]] == [
        "float",
        "calibrated",
        "trained" if by_labels else "distilled",
    ]
    assert ("accuracy" in told["stages"][0]["metrics"]) == by_labels
    assert told["features"] == len(find_images(data)) - 1
    assert np.isfinite(told["loss"])
    assert f"Training on {told['features']} images" in result.output
    assert json.loads((out / "preprocessor_config.json").read_text()) == PROCESSOR
    trained, source = (ViTForImageClassification.from_pretrained(place) for place in (out, folder / "m"))
    assert not torch.equal(trained.classifier.weight, source.classifier.weight)


def test_it_is_tuned_and_its_units_ranked(folder: Path, tmp_path: Path) -> None:
    arguments = ("--calib", folder / "data", "--method", "max", "--tune", 1)
    result = invoke("convert", folder / "m", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    result = invoke("sensitivity", folder / "m", "--data", folder / "data", "--json", "--max-drop", 50)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["costs"]["units"]) == 8


@pytest.mark.slow
def test_it_is_optimized(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by rungs that begin with a model, none of which is told by tokens."""
    rungs = (Rung("ranges", 1), Rung("units in float", 1, "float units"), Rung("taught", 1, "distillation"))
    monkeypatch.setattr(ladder.climb, "__defaults__", (rungs, *(ladder.climb.__defaults__ or ())[1:]))
    monkeypatch.setattr(ladder.Climb, "met", property(lambda climb: len(climb.rungs) == 1 + len(rungs)))
    out, options = tmp_path / "out", ("--data", folder / "data", "--shape", "1x1", "--max-drop", 100)
    result = invoke("optimize", folder / "m", out, *options)
    assert result.exit_code == 0, result.output
    assert "for texts alone" in result.output
    assert (out / "onnx" / "model.onnx").is_file()
    assert (out / "preprocessor_config.json").is_file()


def test_batches_of_images(folder: Path) -> None:
    batches = image_batches(folder / "data", load_processor(str(folder / "m")), samples=5, batch_size=2)
    assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(2, 3, 16, 16)] * 2 + [
        (1, 3, 16, 16)
    ]
    assert len(batches) == 3
    with pytest.raises(DataError, match="There is no folder"):
        image_batches(folder / "nothing", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "m", "out", "--calib", "empty"), "There is no image in empty: no file ends in .bmp"),
        (("convert", "m", "out", "--calib", "damaged"), "Cannot read the image damaged/x.png"),
        (
            ("convert", "bare", "out", "--calib", "data"),
            "data is a folder. For texts, name a file; for images, bare needs its",
        ),
        (("convert", "m", "out", "--calib", "data", "--max-length", "8"), "--max-length: this is for texts"),
        (("eval", "m", "--data", "mixed"), "mixed/y.png is in no folder that is called after a class"),
        (("eval", "m", "--data", "birds"), "has the label 'bird'; the model's are 0 (cat), 1 (dog)"),
        (("eval", "m", "--data", "gone.csv"), "gone.csv, line 2, names nowhere.png, which is not there"),
        (
            ("eval", "bare", "--data", "data"),
            "There is no image processor (preprocessor_config.json) beside bare",
        ),
        (("train", "bare", "out", "--data", "data"), "bare has no image processor, which says how images"),
        (("train", "m", "out", "--data", "mixed"), "mixed/y.png is in no folder that is called after a"),
        (("train", "m", "out", "--data", "damaged", "--distill"), "one example: give others to evaluate on"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    folder: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    image = images.new("RGB", (4, 4))
    for name in ("empty", "damaged", "mixed/cat", "birds/bird", "bare"):
        Path(name).mkdir(parents=True, exist_ok=True)
    Path("damaged/x.png").write_bytes(b"no image")
    for name in ("mixed/y.png", "mixed/cat/x.png", "birds/bird/x.png"):
        image.save(name)
    Path("gone.csv").write_text("image,label\nnowhere.png,cat\n")
    for name in ("config.json", "model.safetensors"):
        Path("bare", name).write_bytes(Path("m", name).read_bytes())
    result = invoke(*arguments)
    assert result.exit_code, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not Path("out").exists()
