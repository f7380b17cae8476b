import math

from qdqpatch.engines.canaries import Verified


def test_a_text_that_is_not_a_number_is_the_worst() -> None:
    for measure, good in (("cosine", 1.0), ("apart", 0.0)):
        found = Verified("model.onnx", "engine", measure, (good, math.nan), None, changed=False)
        assert math.isnan(found.worst)
        assert found.drifts
