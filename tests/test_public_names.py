"""`import qdqpatch`: its names are there when they are used, and transformers knows our checkpoints."""

import ast
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch

import qdqpatch
from qdqpatch import lazy, training

QDQBERT = Path(__file__).parent / "reference" / "checkpoints" / "QDQBertForMaskedLM"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    models.calibrated("BertForMaskedLM").save_pretrained(folder)
    (folder / "model.pickle").write_bytes(pickle.dumps(models.calibrated("BertForMaskedLM")))
    torch.save(models.calibrated("BertForMaskedLM").bert.encoder.layer[0], folder / "layer.pt")
    return folder


FORKING = """
import gc, json, os, sys
gc.disable()  # which only looks through what is imported
import accelerate, huggingface_hub, jinja2, numpy, PIL.Image, scipy.optimize, scipy.stats, tokenizers
import safetensors.torch, torch._dynamo, torch.distributed.checkpoint, wrapt, yaml
import torch.distributed.fsdp, torch.distributed.tensor, torch.export
for name, code in json.load(sys.stdin).items():
    child = os.fork()
    if child:
        assert not os.waitpid(child, 0)[1], name
        continue
    try:
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), 1)
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def printed(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What Python code prints in a process of its own, a fork of one that has what transformers needs."""
    folder = tmp_path_factory.mktemp("printed")
    codes = {name: code.replace("SAVED", repr(str(saved))) for name, code in CODES.items()}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING],
        cwd=folder,
        input=json.dumps(codes),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {name: (folder / name).read_text(encoding="utf-8").strip() for name in codes}


@pytest.mark.parametrize("package", [qdqpatch, training])
def test_every_public_name_is_what_its_module_calls_so(package) -> None:
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
        if not name.startswith("__"):
            assert getattr(package, name).__name__ == name


@pytest.mark.parametrize("package", [qdqpatch, training])
def test_type_checkers_see_the_names_that_there_are(package) -> None:
    """`__all__`, the imports for type checkers and the homes are three lists of the same names."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (branch,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.name: node.module.removeprefix(f"{package.__name__}.")
        for node in branch.body
        for alias in node.names
    }
    (homes,) = [ast.literal_eval(node) for node in ast.walk(branch) if isinstance(node, ast.Dict)]
    assert homes == typed
    assert sorted(homes) == [name for name in package.__all__ if name != "__version__"]


def test_star_import() -> None:
    names: dict[str, object] = {}
    exec("from qdqpatch import *", names)
    assert set(qdqpatch.__all__) <= names.keys()


@pytest.mark.slow
def test_rooms_are_attributes(printed: dict[str, str]) -> None:
    assert printed["a room"] == "Statistics"


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="module 'qdqpatch' has no attribute 'quantise'"):
        _ = qdqpatch.quantise
    with pytest.raises(ImportError, match="quantise"):
        importlib.import_module("qdqpatch.quantise")
    with pytest.raises(AttributeError, match="module 'json' has no attribute 'x'"):
        lazy.attributes("json", {})("x")


ORDERS = {
    "ours first": "import qdqpatch; import transformers",
    "theirs first": "import transformers; import qdqpatch",
    "the class first": "from transformers import AutoModelForMaskedLM; import qdqpatch",
    "before the auto classes": "import qdqpatch.config; from transformers import BertForMaskedLM",
    "reloaded": "import qdqpatch, importlib, transformers.quantizers; importlib.reload(qdqpatch)",
    "reloaded at once": "import qdqpatch, importlib; importlib.reload(qdqpatch)",
}


THEIRS = "import transformers.models.auto.modeling_auto, transformers.models.bert.modeling_bert"
IN_THREADS = {
    "ours in threads": (THEIRS, [
        "import qdqpatch", "from qdqpatch import quantize", "from qdqpatch import QDQConfig",
        "from qdqpatch import load_qdqbert", "from qdqpatch import calibrate", "from qdqpatch import *",
    ]),
    "none of ours but for loading": (f"import qdqpatch\n{THEIRS}", ["import qdqpatch"] * 6),
}  # fmt: skip
"""What the main thread imports, and what six threads do; transformers alone fails in threads."""


def loading(first: str) -> str:
    """Return code that loads two checkpoints after an import."""
    return f"""
{first}
from transformers import AutoConfig, AutoModelForMaskedLM
for folder in (SAVED, {str(QDQBERT)!r}):
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    found = config, model.config.quantization_config, model.hf_quantizer
    print(*(type(part).__name__ for part in found))
"""


def in_threads(first: str, lines: list[str]) -> str:
    """Return code whose threads import and load at once."""
    return f"""
{first}
import faulthandler, threading
from transformers import AutoModelForMaskedLM
faulthandler.dump_traceback_later(120, exit=True)
start, loaded = threading.Barrier(6), []
def load(line):
    start.wait()
    try:
        exec(line, {{}})
        import qdqpatch
        loaded.append(type(AutoModelForMaskedLM.from_pretrained(SAVED).hf_quantizer).__name__)
    except BaseException as error:
        loaded.append(repr(error))
threads = [threading.Thread(target=load, args=(line,)) for line in {lines!r}]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*loaded)
"""


CODES = {
    **{name: loading(first) for name, first in ORDERS.items()},
    **{name: in_threads(first, lines) for name, (first, lines) in IN_THREADS.items()},
    "a room": "import qdqpatch; print(qdqpatch.calibration.Statistics.__name__)",
    "none of our names": """
import sys, qdqpatch
from transformers import AutoModelForMaskedLM, BertForMaskedLM
print(*(name for name in sys.modules if name.startswith(("qdqpatch.", "pytorch_quantization"))))
""",
    "pickles": """
import pickle, pathlib, torch
folder = pathlib.Path(SAVED)
model = pickle.loads((folder / "model.pickle").read_bytes())
layer = torch.load(folder / "layer.pt", weights_only=False)
with torch.no_grad():
    print(model(torch.tensor([[1, 2, 3]])).logits.sum().item())
    print(layer(torch.ones(1, 3, model.config.hidden_size)).sum().item())
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_checkpoints_load_whatever_is_imported_first(order: str, printed: dict[str, str]) -> None:
    assert printed[order].splitlines() == ["BertConfig QDQConfig QDQHfQuantizer"] * 2


@pytest.mark.slow
def test_without_our_names_nothing_of_ours_is_imported(printed: dict[str, str]) -> None:
    assert set(printed["none of our names"].split()) == {
        f"qdqpatch.{name}" for name in ("choices", "lazy", "patching", "patching.registration")
    }


@pytest.mark.slow
def test_pickles_load_without_an_import_of_ours(printed: dict[str, str]) -> None:
    with torch.no_grad():
        model = models.calibrated("BertForMaskedLM")
        expected = [
            model(torch.tensor([[1, 2, 3]])).logits.sum().item(),
            model.bert.encoder.layer[0](torch.ones(1, 3, model.config.hidden_size)).sum().item(),
        ]
    assert [float(line) for line in printed["pickles"].splitlines()] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", IN_THREADS)
def test_threads_import_and_load_at_once(case: str, printed: dict[str, str]) -> None:
    """None waits for another for ever, and all models are quantized."""
    assert printed[case].split() == ["QDQHfQuantizer"] * 6
