"""WILDCAT: classes, points, boxes and masks from one network trained on image-level labels (Durand et al., CVPR 2017).

>>> import wildcat
>>> model = wildcat.create_model("test_resnet", num_classes=3, pretrained=False)  # an nn.Module
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wildcat._version import __version__

if TYPE_CHECKING:
    from wildcat.nn import create_model, list_backbones
    from wildcat.predictor import load

__all__ = ["__version__", "create_model", "list_backbones", "load"]


def __getattr__(name: str) -> Any:
    """Import torch on first use (PEP 562), so that `import wildcat` and `wildcat --help` stay fast."""
    if name in ("create_model", "list_backbones"):
        import wildcat.nn

        return getattr(wildcat.nn, name)
    if name == "load":
        import wildcat.predictor

        return wildcat.predictor.load
    raise AttributeError(f"module 'wildcat' has no attribute {name!r}")
