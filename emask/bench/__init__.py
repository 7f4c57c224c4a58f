"""Measuring masks the way they are used: on saved photos, by recognizers that no training saw."""

from __future__ import annotations

from emask.bench.metrics import Rate, accepted, lfw_accuracy, psnr, rate, rejected, ssim, wilson

__all__ = ["Rate", "accepted", "lfw_accuracy", "psnr", "rate", "rejected", "ssim", "wilson"]
