"""Cutting a backbone before its last stage, so that the stages before it run once and the last one is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from wildcat.errors import ConfigError
from wildcat.nn.backbones import Backbone


class FirstStages(Backbone):
    """The stages of a backbone before the last one: images (B, 3, H, W) -> features of four dimensions."""

    def _as_map(self, features: Tensor, images: Tensor) -> Tensor:
        return features


class LastStage(nn.Module):
    """The layers of a backbone after `FirstStages`: its features -> (B, D, h, w)."""

    def __init__(self, backbone: Backbone, layers: fx.GraphModule) -> None:
        super().__init__()
        self.backbone, self.layers = backbone, layers

    def forward(self, features: Tensor) -> Tensor:
        return self.backbone._as_map(self.layers(features), features)


def split_backbone(backbone: Backbone, image_size: int) -> tuple[FirstStages, LastStage]:
    """The same backbone in two parts, which share its layers; in evaluation mode, for square images of `image_size`.

    The last stage is what follows the last map of twice the final resolution, as timm's `feature_info` lists them: for
    lite2 76 % of the weights, for ResNet-50 64 %. Where nothing but pooling follows, as in VGG, it is what follows the
    map before that.

    Raises:
        ConfigError: the network has no such stages, or its code cannot be traced.
    """
    stages = list(getattr(backbone.network, "feature_info", ()))
    last = max((stage["reduction"] for stage in stages), default=0)
    cuts = [stage["module"] for stage in stages if stage["reduction"] < last]
    refused = ConfigError(f"{backbone.name} cannot be cut before its last stage.", "Give --tune all, or --tune head.")
    try:
        parts = (_cut(backbone.network, cut) for cut in reversed(cuts))
        first, rest = next((first, rest) for first, rest in parts if any(True for _ in rest.parameters()))
        layers = (
            FirstStages(backbone.name, _Network(backbone.network, first), backbone.multiple).eval(),
            LastStage(backbone, rest).eval(),
        )
        images = torch.randn(1, 3, image_size, image_size, device=next(backbone.parameters()).device)
        with torch.no_grad():
            expected, features = backbone.eval()(images), layers[0](images)
            if not isinstance(features, Tensor) or features.ndim != 4:  # HRNet's stages have several maps
                raise refused
            if not torch.allclose(layers[1](features), expected, atol=1e-4, rtol=1e-3):
                raise refused
    except (TraceError, TypeError, NotImplementedError, LookupError, StopIteration) as error:
        raise refused from error
    return layers


class _Network(nn.Module):
    """The first layers of a timm network, with the attributes that `Backbone` reads."""

    def __init__(self, network: nn.Module, layers: fx.GraphModule) -> None:
        super().__init__()
        self.pretrained_cfg: Any = network.pretrained_cfg
        self.num_features: Any = network.num_features
        self.layers = layers

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


class ForwardFeatures(nn.Module):
    """The `forward_features` of a timm network as a module, for tracing: its layers are called `network.*`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.forward_features(images)  # type: ignore[operator]  # every timm model has it
        return features


class ForwardIntermediates(ForwardFeatures):
    """The `forward_intermediates` of a timm network in the same way: its features, and a list of inner ones."""

    def forward(self, images: Tensor) -> Any:
        return self.network.forward_intermediates(images, output_fmt="NCHW")  # type: ignore[operator]


class _Tracer(fx.Tracer):
    """Traces into the modules that contain the module named `cut`, and calls all others whole."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.cut = cut

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not self.cut.startswith(f"{name}.")


def _cut(network: nn.Module, name: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The layers of `network.forward_features` up to the last call of module `name`, and those after it."""
    cut = f"network.{name}"
    root = ForwardFeatures(network)
    whole = fx.GraphModule(root, _Tracer(cut).trace(root))
    parts = []
    for first in (True, False):
        graph = fx.Graph(owning_module=whole)
        copies: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(whole.graph, copies)
        middle = copies[[node for node in whole.graph.nodes if node.target == cut][-1]]
        if first:
            graph.output(middle)
        else:
            with graph.inserting_before(middle):
                middle.replace_all_uses_with(graph.placeholder("features"))
            graph.output(output)
        graph.eliminate_dead_code()
        for node in graph.find_nodes(op="placeholder"):  # the images, which the layers after the cut do not take
            if not node.users:
                graph.erase_node(node)
        graph.lint()
        parts.append(fx.GraphModule(root, graph))
    return parts[0], parts[1]
