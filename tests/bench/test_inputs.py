"""What the models of a benchmark are given: shapes and tokens."""

import numpy as np
import pytest

from qdqpatch.bench.inputs import check_inputs, make_inputs
from qdqpatch.engines.contenders import Facts
from qdqpatch.engines.sessions import Input, fixed_sizes
from qdqpatch.engines.shapes import Shape, cut
from qdqpatch.errors import ConfigError

IDS = Input("input_ids", (None, None), "int64")


def test_shapes_are_read_and_written() -> None:
    assert Shape.parse("8x128") == Shape(8, 128)
    assert str(Shape(8, 128)) == "8x128"
    assert Shape(8, 128).tokens == 1024
    for text in ("", "8", "8*128", "0x128", "8x0", "-1x8", "1x128x2", "1x1.5", " 1x8"):
        with pytest.raises(ConfigError, match="BATCHxLENGTH"):
            Shape.parse(text)


def test_shapes_are_cut_to_the_limit_and_not_repeated() -> None:
    shapes = (Shape(1, 128), Shape(8, 128), Shape(1, 384))
    assert cut(shapes, 512) == shapes
    assert cut(shapes, 200) == (Shape(1, 128), Shape(8, 128), Shape(1, 200))
    assert cut(shapes, 32) == (Shape(1, 32), Shape(8, 32))


def test_inputs_are_tokens_without_padding() -> None:
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    inputs = [Input(name, (None, None), "int64") for name in names]
    made = make_inputs(inputs, Shape(50, 16), Facts(vocab_size=10, pad_token_id=3))
    assert list(made) == list(names)
    assert set(made["input_ids"].flat) == set(range(10)) - {3}
    assert (made["attention_mask"] == 1).all()
    assert (made["token_type_ids"] == 0).all()
    assert (made["position_ids"] == np.arange(16)).all()
    assert {(array.shape, array.dtype.name) for array in made.values()} == {((50, 16), "int64")}
    again = make_inputs(inputs, Shape(50, 16), Facts(vocab_size=10, pad_token_id=3))
    assert (made["input_ids"] == again["input_ids"]).all()
    assert 0 not in make_inputs([IDS], Shape(50, 16), Facts(10))["input_ids"]
    unknown = make_inputs([IDS], Shape(500, 16), Facts())["input_ids"]
    assert (unknown.min(), unknown.max()) == (1, 999)


def test_inputs_have_the_type_and_the_batch_that_the_graph_names() -> None:
    inputs = [
        Input("input_ids", (None, None), "int32"),
        Input("input_mask", (), "float32"),
        Input("position_ids", (1, None), "int64"),
    ]
    made = make_inputs(inputs, Shape(2, 4), Facts(10))
    assert [(array.dtype.name, array.shape) for array in made.values()] == [
        ("int32", (2, 4)),
        ("float32", (2, 4)),
        ("int64", (1, 4)),
    ]
    assert fixed_sizes(inputs) == (None, None)
    assert fixed_sizes([Input("input_ids", (None, 64), "int64"), *inputs]) == (None, 64)
    assert fixed_sizes([Input("input_ids", (2, 64), "int64")]) == (2, 64)


def test_other_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match="m takes bbox; bench makes input_ids, attention_mask"):
        check_inputs("m", [IDS, Input("bbox", (None, None), "int64")])
    with pytest.raises(ConfigError, match="m takes input_ids of 3 dimensions"):
        check_inputs("m", [Input("input_ids", (None, None, None), "int64")])
    check_inputs("m", [IDS, Input("attention_mask", (), "int64")])


def test_images_are_of_the_size_of_the_graph_or_of_the_config() -> None:
    free, fixed = (Input("pixel_values", (None, *size), "float32") for size in ((None,) * 3, (3, 8, 4)))
    check_inputs("m", [free])
    facts = Facts(image=(1, 16, 16))
    assert make_inputs([free], Shape(2, 128), facts)["pixel_values"].shape == (2, 1, 16, 16)
    made = make_inputs([fixed], Shape(2, 128), facts)["pixel_values"]
    assert (made.shape, made.dtype.name) == ((2, 3, 8, 4), "float32")
    with pytest.raises(ConfigError, match="How large the images are is not said"):
        make_inputs([free], Shape(1, 1), Facts())
