import numpy as np
import pytest

from qdqpatch import QDQConfig
from qdqpatch.errors import ConfigError
from qdqpatch.optimizing.budget import Budget
from qdqpatch.optimizing.placements import placement_for
from qdqpatch.tasks.metrics import mean
from qdqpatch.tasks.neighbours import Vectors, comparison


def test_gates_of_an_embedder() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 8))
    near = vectors + 0.001 * generator.normal(size=vectors.shape)
    far = vectors + 0.5 * generator.normal(size=vectors.shape)
    budget = Budget("states")
    good, bad = (budget.judge(comparison(Vectors(own), Vectors(vectors))) for own in (near, far))
    assert good.passes
    assert not bad.passes
    assert list(bad.figures) == ["cosine", "top-10 kept"]
    cosine, kept = (metric.value for metric in bad.figures.values())
    assert bad.shortfall == pytest.approx(100 * (0.995 - cosine) / 0.995 + 100 * (95 - kept) / 95)
    assert bad.main < good.main
    assert str(budget) == "cosine of 0.995 and top-10 kept of 95"


def test_a_drop_of_labels_or_of_agreement() -> None:
    budget = Budget("classes", 5.0)
    close = [
        mean("KL divergence", [0.1] * 10, in_percent=False),
        mean("unchanged predictions", [1.0] * 9 + [0]),
    ]
    assert budget.judge(close).shortfall == pytest.approx(5)
    own, reference = mean("accuracy", [1.0] * 8 + [0.0] * 2), mean("accuracy", [1.0] * 9 + [0])
    judged = budget.judge(close, [own], [reference])
    assert list(judged.figures) == ["accuracy"]
    assert judged.shortfall == pytest.approx(100 / 9 - 5)
    assert Budget("classes", 12.0).judge(close, [own], [reference]).passes
    with pytest.raises(ConfigError, match="max_drop must be a number of at least 0, not -1"):
        Budget("classes", -1)


def test_what_examples_resolve() -> None:
    assert Budget("classes").resolution(100) is None
    message = Budget("classes").resolution(50)
    assert message is not None
    assert message.startswith("50 texts held back cannot resolve 1%: one of them is 2%.")
    assert Budget("states").resolution(5) is None


def test_placements() -> None:
    assert str(placement_for("onnxruntime", "states")) == "linear-only, asymmetric"
    assert placement_for("onnxruntime", "states").config == QDQConfig.preset(
        "linear-only", activation={"symmetric": False}
    )
    assert str(placement_for("openvino", "classes")) == "no-residual"
    assert placement_for("openvino", "classes").config == QDQConfig.preset("no-residual")
    assert str(placement_for("tensorrt", "states")) == "qdqbert"
