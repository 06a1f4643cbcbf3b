"""What the paper compares WILDCAT with, and what came later.

`pools`: other poolings of class maps. `attention`, `architectures`, `background`: networks with another head.
`descriptor`: the base of those that classify one vector per image. Each other file is a method of `wildcat.methods`
with layers of its own; its `create` builds the network, `SIZE` is the default of `head_size`.
"""

from wildcat.nn.heads.architectures import PoolEachMap, PoolThenClassify
from wildcat.nn.heads.attention import AttentionPool, AttentionWildcat, attention_pool
from wildcat.nn.heads.background import BackgroundWildcat, competing_logits
from wildcat.nn.heads.pools import (
    POOLINGS,
    LogSumExpPool,
    MapPool,
    ResidualAttentionPool,
    create_pool,
    csra_pool,
    log_sum_exp_pool,
)

__all__ = [
    "POOLINGS",
    "AttentionPool",
    "AttentionWildcat",
    "BackgroundWildcat",
    "LogSumExpPool",
    "MapPool",
    "PoolEachMap",
    "PoolThenClassify",
    "ResidualAttentionPool",
    "attention_pool",
    "competing_logits",
    "create_pool",
    "csra_pool",
    "log_sum_exp_pool",
]
