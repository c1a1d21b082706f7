"""Hugging Face transformers: models loaded safely, put on the op layer in place, and compared with the stock model."""

from .kernelize import Left, Replaced, Report, kernelize, restore

__all__ = ["Left", "Replaced", "Report", "kernelize", "restore"]
