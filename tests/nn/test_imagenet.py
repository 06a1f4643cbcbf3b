"""The embedded classifiers know everyday things, and as WILDCAT networks they say exactly what timm says."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torchvision.transforms import functional

from wildcat.errors import ConfigError
from wildcat.nn.factory import imagenet_model
from wildcat.nn.model import Wildcat
from wildcat.nn.weights import embedded_weights

PHOTOGRAPHS = {  # images inside scikit-image's wheel -> names of which one must be among the first three
    "chelsea": {"Egyptian cat", "tabby, tabby cat", "tiger cat"},
    "coffee": {"espresso", "cup", "coffee mug"},
    "rocket": {"missile", "projectile, missile", "space shuttle"},
}


def prepared(name: str) -> torch.Tensor:
    """As the wheel's documentation says: [-1, 1], bicubic; the whole image at 224 pixels."""
    image = Image.fromarray(getattr(skimage.data, name)()).resize((224, 224), Image.Resampling.BICUBIC)
    return functional.to_tensor(image)[None] * 2 - 1


@pytest.fixture(scope="module")
def model() -> Wildcat:
    return imagenet_model("lite0").eval()


@pytest.mark.parametrize("name", list(PHOTOGRAPHS))
def test_photographs(model: Wildcat, name: str) -> None:
    with torch.no_grad():
        best = model(prepared(name))[0].topk(3).indices
    info = ImageNetInfo()
    found = {info.index_to_description(int(i)) for i in best}
    assert found & PHOTOGRAPHS[name], f"{name} is taken for {found}"


def test_scores_are_the_logits_of_timm(model: Wildcat) -> None:
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(embedded_weights("lite0", network))
    images = torch.cat([prepared("chelsea"), prepared("rocket")])
    with torch.no_grad():
        np.testing.assert_allclose(model(images), network(images), atol=1e-4)
        np.testing.assert_allclose(model.maps(images)[:, :, 0].mean(dim=(2, 3)), network(images), atol=1e-4)


def test_only_embedded_networks_bring_a_classifier() -> None:
    with pytest.raises(ConfigError) as caught:
        imagenet_model("resnet50")
    assert caught.value.message == "resnet50 has no ImageNet classifier in this package."
    assert "lite0" in caught.value.hint
