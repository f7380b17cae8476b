"""Figures about quantizers as a person reads them."""

from __future__ import annotations

from qdqpatch.report.quantizers import QuantizerReport
from qdqpatch.spelling import counted


def range_text(report: QuantizerReport) -> str:
    """Write a range as `1.234`, or `0.1 to 0.9 (768 channels)`; `from each input` if there is none."""
    amax = report.amax
    if amax is None:
        return "from each input"
    if report.ends is not None:
        return " to ".join(f"{value:.4g}" for value in report.ends.tolist())
    if amax.numel() == 1:
        return f"{amax.item():.4g}"
    return f"{amax.min().item():.4g} to {amax.max().item():.4g} ({counted(amax.numel(), 'channel')})"


def share_text(report: QuantizerReport) -> str:
    """Write the clipped share as `0.012%`; `-` if it is not known."""
    if report.quality is None:
        return "-"
    percent = 100 * report.quality.clipped_share
    if percent == 0:
        return "0%"
    return "<0.001%" if percent < 0.001 else f"{percent:.3f}%"


def decibels_text(report: QuantizerReport) -> str:
    """Write the SQNR as `38.2`; `-` if it is not known."""
    return "-" if report.sqnr_db is None else f"{report.sqnr_db:.1f}"
