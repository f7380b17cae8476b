import pytest

from qdqpatch.patching.folding import fold


@pytest.mark.parametrize(
    ("numbers", "written"),
    [
        ([3], "3"),
        ([0, 1], "{0..1}"),
        ([0, 1, 2, 11], "{0..2,11}"),
        ([0, 2, 4], "{0,2,4}"),
        ([2, 0, 1, 1], "{0..2}"),
        ([9, 10], "{9..10}"),
    ],
)
def test_numbers_of_equal_rows_become_ranges(numbers: list[int], written: str) -> None:
    rows = [(f"encoder.layer.{number}.output", "linear", "int8") for number in numbers]
    assert fold(rows) == [(f"encoder.layer.{written}.output", "linear", "int8")]


def test_rows_that_say_something_else_stay_apart() -> None:
    rows = [
        ("layer.0.query", "linear", "int8"),
        ("layer.0.query", "linear", "int4"),
        ("layer.1.query", "matmul", "int8"),
        ("layer.1.key", "linear", "int8"),
    ]
    assert fold(rows) == rows


def test_order_is_that_of_each_first_row() -> None:
    rows = [("b.0", "", ""), ("a.0", "", ""), ("b.1", "", "")]
    assert fold(rows) == [("b.{0..1}", "", ""), ("a.0", "", "")]


def test_only_whole_path_components_are_numbers() -> None:
    rows = [("layer1.x", "", ""), ("layer2.x", "", "")]
    assert fold(rows) == rows


def test_a_number_may_begin_or_end_a_path() -> None:
    assert fold([("0.dense.0", "", ""), ("1.dense.0", "", "")]) == [("{0..1}.dense.0", "", "")]


def test_no_rows() -> None:
    assert fold([]) == []


def test_only_the_first_number_is_folded() -> None:
    rows = [("a.0.b.0", "x", "y"), ("a.1.b.1", "x", "y"), ("a.1.b.0", "x", "y")]
    assert fold(rows) == [("a.{0..1}.b.0", "x", "y"), ("a.1.b.1", "x", "y")]
