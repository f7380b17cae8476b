"""The hook by which transformers' own `from_pretrained` and `save_pretrained` handle our models."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import HfQuantizer

from qdqpatch.choices import QUANT_METHOD
from qdqpatch.config.config import QDQConfig
from qdqpatch.config.quantizer import Override
from qdqpatch.errors import ConfigError, QuantizationWarning
from qdqpatch.nn.attention import IMPLEMENTATION
from qdqpatch.nn.learned import update_ranges
from qdqpatch.patching.apply import apply_plan, named_quantizers, revert, set_fixed_ranges
from qdqpatch.patching.finite import check_finite
from qdqpatch.patching.guard import guard, lift, unguard
from qdqpatch.patching.input_scales import make_room_for_scales, read_input_scales
from qdqpatch.patching.own_code import forget_code
from qdqpatch.patching.plan import Plan
from qdqpatch.patching.recorded import KEY
from qdqpatch.patching.saved_part import warn_of_part
from qdqpatch.patching.sites import find_sites
from qdqpatch.patching.stored_ranges import make_room, read_ranges, warn_of_missing, weight_settings
from qdqpatch.patching.zero_points import make_room_for_zero_points, read_zero_points

CONVERSIONS = "_weight_conversions"
"""Where transformers keeps how a model's tensors are renamed and joined when it is saved."""

NOT_SAVED = "It was not saved. If it was being trained, lower the learning rate."


class QDQHfQuantizer(HfQuantizer):
    """Quantizes a model while transformers loads it, and goes with it as `model.hf_quantizer`.

    Attributes:
        quantization_config: The model's recipe.
        attn_implementation: What the float model computes attention with, to return to.
        record: Where the model can be quantized, which is saved with it (`recorded.py`).
    """

    requires_calibration = False
    quantization_config: QDQConfig

    def __init__(self, quantization_config: QDQConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.attn_implementation: str | None = None
        self._plan: Plan | None = None
        self._conversions: list[Any] | None = None
        self.record: tuple[Mapping[str, Any], ...] = ()
        self._paths: tuple[str, ...] = ()
        self._hook: RemovableHandle | None = None

    def patch(self, model: PreTrainedModel, plan: Plan) -> None:
        """Apply the plan and make the model say so."""
        if model.config._attn_implementation != IMPLEMENTATION:
            self.attn_implementation = model.config._attn_implementation
        apply_plan(model, plan)
        self.record = plan.record
        self._paths = tuple(path for path, _ in named_quantizers(model))
        self.quantization_config = plan.config
        model.config.quantization_config = plan.config
        guard(model.config)
        forget_code(model.config, type(model))
        vars(model).update(hf_quantizer=self, quantization_method=QUANT_METHOD)
        self._hook = model.register_state_dict_pre_hook(warn_of_part)

    def update_tp_plan(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Lift the guard: the first that transformers before 5.20 asks of a checkpoint's config."""
        lift(config)
        return config

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Lift the guard: what transformers asks since 5.20."""
        lift(config)
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        files = checkpoint_files or []
        ranges, scales, zero_points = read_ranges(files), read_input_scales(files), read_zero_points(files)
        config = self.quantization_config
        if self.pre_quantized and config.weight is None:
            config = dataclasses.replace(config, weight=weight_settings(ranges))
        # A checkpoint's overrides may name a head that this class does not have.
        self._plan = find_sites(model, config, strict=not self.pre_quantized)
        if shortfall := self._plan.shortfall():
            warnings.warn(shortfall, QuantizationWarning, stacklevel=2)
        self.patch(model, self._plan)
        make_room(model, ranges, model.base_model_prefix)
        make_room_for_zero_points(model, zero_points, model.base_model_prefix)
        make_room_for_scales(model, scales, model.base_model_prefix)
        warn_of_missing(model, self._plan)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        assert self._plan is not None, "transformers calls the hook before loading first"
        set_fixed_ranges(model, self._plan)
        self._plan = None
        # Its weights are floats that can be cast and trained, which transformers forbids to a model
        # whose weights are packed integers.
        vars(model)["is_quantized"] = False
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        revert(model, self.attn_implementation)
        vars(model.config).pop(KEY, None)
        unguard(model.config)
        if self._hook is not None:
            self._hook.remove()
        if vars(model).get(CONVERSIONS) == []:
            vars(model)[CONVERSIONS] = self._conversions
        if isinstance(dtype, str):  # as transformers leaves it in the config of a model that was saved
            dtype = getattr(torch, dtype)
        return model if dtype is None else model.to(dtype)  # type: ignore[arg-type]  # a wrapped method

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[None, dict[str, str]]:
        """Say that the model's own state dict is saved; the first thing that `save_pretrained` asks for.

        Ranges that follow their weights in training are brought up to date, for the last step's too, and
        learned ones that fell below 0 become the smallest there is, which they count as.

        Raises:
            CheckpointError: If the model holds NaN or infinity.
            ConfigError: If the config has `output_attentions=True`: transformers refuses to write that
                for any attention implementation but its own "eager", after it made the folder. Or if the
                model has an adapter of peft, which alone would be saved.
        """
        if model.config.output_attentions:
            raise ConfigError(
                "transformers cannot save config.output_attentions=True for this attention implementation. "
                "Set model.config.output_attentions = False and pass output_attentions=True to each call."
            )
        if getattr(model, "_hf_peft_config_loaded", False):
            raise ConfigError(
                "The model has an adapter, and transformers would save that alone. Merge it first "
                "(merge_and_unload() of peft), before the model is quantized."
            )
        self._tell_of_what_is_gone(model)
        update_ranges(model)
        check_finite(model, f"This {type(model).__name__}", NOT_SAVED)
        setattr(model.config, KEY, list(self.record))
        # transformers would save some models under other names than their own, or several tensors as one, and
        # knows only of weights: the ranges would be lost. None means that it finds the renamings itself.
        if vars(model).get(CONVERSIONS) != []:
            self._conversions = vars(model).get(CONVERSIONS)
            vars(model)[CONVERSIONS] = []
        return None, {}

    def _tell_of_what_is_gone(self, model: PreTrainedModel) -> None:
        """Let the configuration say that quantizers are off whose modules were exchanged for float ones.

        `resize_token_embeddings` gives a head that is not tied to the embeddings a new Linear, for example.
        """
        there = {path for path, _ in named_quantizers(model)}
        if not (gone := [path for path in self._paths if path not in there]):
            return
        self._paths = tuple(path for path in self._paths if path in there)
        owner = gone[0].rpartition(".")[0]
        warnings.warn(
            f"{owner} was exchanged for a float module after the model was quantized, as by "
            "resize_token_embeddings, and is saved as float. To quantize it: dequantize the model, quantize "
            "it again, and calibrate.",
            QuantizationWarning,
            stacklevel=4,
        )
        config: QDQConfig = model.config.quantization_config
        off = [Override(path, enabled=False) for path in gone]
        config = dataclasses.replace(config, overrides=(*config.overrides, *off))
        self.quantization_config = model.config.quantization_config = config

    def is_serializable(self, safe_serialization: object = None) -> bool:
        """Return True: ranges and recipe are saved with the model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: fake quantization passes gradients."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True: training the float weights behind the quantizers is what QAT is."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: the quantizers compile without a graph break."""
        return True
