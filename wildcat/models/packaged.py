"""Packaged models that need no training: the ImageNet classifiers of the embedded backbones."""

from __future__ import annotations

from collections import Counter

from timm.data.imagenet_info import ImageNetInfo

from wildcat.data.transforms import Preprocess
from wildcat.nn.factory import imagenet_model
from wildcat.nn.model import Wildcat
from wildcat.nn.weights import EMBEDDED

PACKAGED = {f"imagenet-{name}": name for name in EMBEDDED}  # name of the model -> its backbone
INPUT_SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}  # that the classifiers were trained at


def load_packaged(name: str, output_stride: int = 32) -> tuple[Wildcat, Preprocess]:
    """The network of a packaged model and the preprocessing of its images.

    Raises:
        MissingExtra: its weights are not installed.
        ConfigError: the backbone does not support the output stride.
    """
    model = imagenet_model(PACKAGED[name], output_stride)
    backbone = model.backbone
    return model, Preprocess(INPUT_SIZES[PACKAGED[name]], backbone.mean, backbone.std, backbone.interpolation)


def imagenet_names() -> list[str]:
    """The 1,000 class names: the first synonym of each ("tabby" for "tabby, tabby cat").

    Names of two classes (crane, maillot, and cardigan in two spellings) are followed by their WordNet id.
    """
    info = ImageNetInfo()
    names = [info.index_to_description(i).split(",")[0] for i in range(1000)]
    uses = Counter(n.casefold() for n in names)
    return [n if uses[n.casefold()] == 1 else f"{n} {info.index_to_label_name(i)}" for i, n in enumerate(names)]
