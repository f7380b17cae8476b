"""What a plan shows: as text, as data and in notebooks."""

import html
import json

import models

from qdqpatch import QDQConfig, plan


def test_the_plan_prints_as_a_table_that_names_every_site(float_model) -> None:
    lines = str(plan(float_model("BertForMaskedLM"))).splitlines()
    assert lines[0] == "BertForMaskedLM: 20 operations quantized, 5 stay float"
    assert lines[1:3] == ["", "Quantized"]
    rows = [line.split(maxsplit=1)[0] for line in lines if line.startswith("  ")]
    layer = "bert.encoder.layer.{0..1}."
    assert rows == [
        *(f"{layer}attention.self.{name}" for name in ("query", "key", "value")),
        f"{layer}attention.output.dense",
        f"{layer}intermediate.dense",
        f"{layer}output.dense",
        f"{layer}attention.self",
        f"{layer}attention.self",
        f"{layer}attention.output",
        f"{layer}output",
        *(f"bert.embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")),
        "cls.predictions.transform.dense",
        "cls.predictions.decoder",
    ]
    assert "_input_quantizer: int8, _weight_quantizer: int8 per channel (axis 0)" in lines[3]
    assert lines[-1].endswith("linear     head=False in the configuration, as in QDQBERT")


def test_columns_of_the_table_line_up(float_model) -> None:
    lines = repr(plan(float_model())).splitlines()  # as a prompt and a notebook show it
    quantized = lines[lines.index("Quantized") + 1 : lines.index("Float") - 1]
    operations = "linear", "query x key", "probabilities x value", "residual add"
    starts = {
        line.index(f"  {operation}  ") for line in quantized for operation in operations if operation in line
    }
    assert len(starts) == 1


def test_what_an_override_turned_off_shows_in_the_table(float_model) -> None:
    text = str(plan(float_model(), QDQConfig(overrides=["*.layer.0.*.query._input_quantizer=off"])))
    assert "encoder.layer.0.attention.self.query  " in text
    assert "_input_quantizer: off, _weight_quantizer: int8" in text


def test_a_plan_is_data(float_model) -> None:
    found = plan(float_model(), QDQConfig(weight={"num_bits": 4}, overrides=["*.query._input_quantizer=off"]))
    data = json.loads(json.dumps(found.to_dict()))
    assert data["model"] == "BertModel"
    assert QDQConfig.from_dict(data["config"]) == found.config
    assert len(data["sites"]) == len(found.sites)
    assert len(data["misses"]) == len(found.misses)
    site = data["sites"][0]
    assert site["path"] == "encoder.layer.0.attention.self.query"
    assert (site["operation"], site["rule"]) == ("linear", "Linears")
    assert site["quantizers"]["_input_quantizer"] is None
    assert site["quantizers"]["_weight_quantizer"]["num_bits"] == 4
    assert data["misses"][0].keys() == {"path", "operation", "reason"}


def test_a_deep_model_prints_no_more_rows_than_a_small_one() -> None:
    small, deep = (models.build(num_hidden_layers=number) for number in (2, 12))
    assert len(str(plan(small)).splitlines()) == len(str(plan(deep)).splitlines())
    assert "encoder.layer.{0..11}.output.dense" in str(plan(deep))


def test_notebooks_show_a_plan_as_tables_that_can_be_folded(float_model) -> None:
    found = plan(float_model("BertForMaskedLM"))
    page = found._repr_html_()
    assert page.count("<details open>") == 2
    assert f"{len(found.sites)} operations quantized" in page
    for path, operation, detail in [*found.site_rows(), *found.miss_rows()]:
        assert f">{html.escape(path)}</td>" in page
        assert f">{html.escape(operation)}</td>" in page
        assert f">{html.escape(detail)}</td>" in page
