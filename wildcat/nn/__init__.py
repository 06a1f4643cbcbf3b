"""The paper in code: read `pooling.py`, then `model.py`."""

from wildcat.nn.backbones import Backbone, create_backbone, list_backbones
from wildcat.nn.factory import create_model, imagenet_model, model_from_config
from wildcat.nn.heads import create_pool, csra_pool, log_sum_exp_pool
from wildcat.nn.model import Wildcat
from wildcat.nn.pooling import class_wise_pool, spatial_pool

__all__ = [
    "Backbone",
    "Wildcat",
    "class_wise_pool",
    "create_backbone",
    "create_model",
    "create_pool",
    "csra_pool",
    "imagenet_model",
    "list_backbones",
    "log_sum_exp_pool",
    "model_from_config",
    "spatial_pool",
]
