"""Names that sweeps still use."""

from .build import build_pruner, check, load_data, recordable
from .build import build_rate as rate
from .device import choose_device, connected, stream

__all__ = ["build_pruner", "check", "choose_device", "connected", "load_data", "rate", "recordable", "stream"]
