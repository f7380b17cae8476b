"""Patterns over paths, and that what a plan prints is one."""

import models
import pytest

from qdqpatch import QDQConfig, plan, quantize
from qdqpatch.config import Override
from qdqpatch.config.patterns import matches
from qdqpatch.errors import ConfigError
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.patching.plan import Plan


@pytest.mark.parametrize(
    ("pattern", "path", "does"),
    [
        ("layer.{0..11}.output", "layer.10.output", True),
        ("layer.{0..11}.output", "layer.12.output", False),
        ("layer.{0..2,5}.output", "layer.5.output", True),
        ("layer.{0..2,5}.output", "layer.4.output", False),
        ("layer.{1}.output", "layer.11.output", False),
        ("*{1}*", "layer.11.output", False),
        ("*{1}", "layer.11", False),
        ("{1}*", "11.layer", False),
        ("*.{3..4}.*.{0}.*", "a.4.b.0.c", True),
        ("*.{3..4}.*.{0}.*", "a.0.b.4.c", False),
        ("*.layer.{1}.?utput", "a.layer.0.layer.1.output", True),
        ("layer.{0..99999999999}.a.b", "layer.7.a+b", False),
        ("layer.[01].output", "layer.1.output", True),
        ("layer.0", "LAYER.0", False),
    ],
)
def test_numbers_in_braces(pattern: str, path: str, does: bool) -> None:
    assert matches(pattern, path) is does
    assert Override(pattern, enabled=True).matches([path]) is does


@pytest.mark.parametrize(
    ("pattern", "spelling"),
    [
        ("layer.[0-11].output", "{0..11}"),
        ("layer.[10-11]", "{10..11}"),
        ("layer.[0-2,11].*", "{0..2,11}"),
        ("layer.[9,10].*", "{9,10}"),
    ],
)
def test_a_bracket_with_several_digits_is_refused_with_the_right_spelling(pattern, spelling) -> None:
    with pytest.raises(ConfigError) as raised:
        QDQConfig(overrides={pattern: False})
    assert str(raised.value).endswith(f"would match one character. For numbers write {spelling}.")


@pytest.mark.parametrize("pattern", ["{query,key}", "{3..1}", "{}", "{1..}", "{-1..2}", "layer.{0-11}.*"])
def test_braces_hold_numbers(pattern: str) -> None:
    with pytest.raises(ConfigError, match="not a range of numbers"):
        Override(pattern, enabled=False)


@pytest.mark.parametrize("pattern", ["layer.[0-9].*", "layer.[!0-1].*", "layer.[0123].*", "[a-z]*", "a[b"])
def test_brackets_of_one_character_stay(pattern: str) -> None:
    Override(pattern, enabled=False)


def quantizers_at(found: Plan, paths: set[str]) -> set[str]:
    return {f"{site.path}.{name}" for site in found.sites if site.path in paths for name in site.quantizers}


def test_every_printed_path_can_be_pasted(any_head: str) -> None:
    model = models.float_model(any_head)
    found = plan(model, QDQConfig(**models.PARTS_ON))
    sites = [site.path for site in found.sites]
    assert any("{0..1}" in path for path, _, _ in found.site_rows())
    for path, _, _ in found.site_rows():
        listed = {site for site in sites if matches(path, site)}
        switched = plan(model, QDQConfig(**models.PARTS_ON, overrides=(f"{path}=off",)))
        before, after = quantizers_at(found, set(sites)), quantizers_at(switched, set(sites))
        assert listed
        assert before - after == quantizers_at(found, listed), path


def test_a_printed_miss_can_be_pasted_to_turn_it_on() -> None:
    model = models.float_model("BertForMaskedLM")
    float_rows = {path for path, _, reason in plan(model).miss_rows() if "in the configuration" in reason}
    assert float_rows
    for path in float_rows:
        assert path in {site.path for site in plan(model, QDQConfig(overrides=(f"{path}=on",))).sites}


def test_a_printed_layer_is_left_float() -> None:
    model = quantize(models.float_model(), QDQConfig(overrides=("encoder.layer.{0..0}.*=off",)))
    on = {path for path, quantizer in named_quantizers(model) if quantizer.is_enabled}
    assert on
    assert all(path.startswith("encoder.layer.1.") for path in on)
