"""Weights of few bits: trained as if quantized, and then quantized."""

from weightsmith_plugins.quantization.fake import FakeQuantize
from weightsmith_plugins.quantization.integers import stored_bytes, to_int8

__all__ = ["FakeQuantize", "stored_bytes", "to_int8"]
