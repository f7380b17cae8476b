"""The model as it is exported, and that it is afterwards what it was."""

import threading

import models
import torch

from qdqpatch.exporter.preparing import prepared
from qdqpatch.patching.quiet import quiet_export


def test_feed_forwards_take_all_positions_at_once() -> None:
    model = models.build(chunk_size_feed_forward=2)
    layers = model.encoder.layer
    with prepared(model, int8_embeddings=False) as exported:
        assert exported is model
        assert {layer.chunk_size_feed_forward for layer in layers} == {0}
    assert {layer.chunk_size_feed_forward for layer in layers} == {2}


def test_it_is_in_fp32_under_autocast_too() -> None:
    model = models.build()
    expected = models.outputs(model)
    with torch.autocast("cpu", torch.bfloat16), prepared(model, int8_embeddings=False) as exported:
        models.assert_equal(models.outputs(exported), expected)


def test_exporters_take_turns() -> None:
    """torch traces one model at a time; and a thread may come here again."""
    order: list[str] = []

    def second() -> None:
        with quiet_export():
            order.append("second")

    thread = threading.Thread(target=second)
    with quiet_export(), quiet_export():
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
