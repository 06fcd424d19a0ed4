"""The catalogue. Adding a group is one object in its family's file and one line here.

Order is preference: the largest group first, with one exception. ActAdd stands in front of all
convolutions, because an Act whose only consumer is a residual Add belongs to that Add.
"""

from __future__ import annotations

from fusewright.groups.attention import MHA_IN_PROJECTION, SCALED_DOT_PRODUCT_ATTENTION
from fusewright.groups.convolution import (
    ACT_ADD,
    CONV_BN,
    CONV_BN_ACT,
    CONV_BN_ACT_MAXPOOL,
    CONV_BN_ADD,
    CONV_BN_ADD_ACT,
    CONV_TRANSPOSE_BN_ACT,
)
from fusewright.groups.kind import Finding, FixedPair, GroupKind, Slot
from fusewright.groups.linear import LINEAR, LINEAR_ACT
from fusewright.groups.norm import GROUP_NORM, LAYER_NORM, RMS_NORM
from fusewright.groups.pooling import ADAPTIVE_AVG_POOL
from fusewright.groups.swin import SWIN_ATTENTION, SWIN_WINDOW_PARTITION, SWIN_WINDOW_REVERSE

CATALOGUE: tuple[GroupKind, ...] = (
    MHA_IN_PROJECTION,
    SWIN_WINDOW_PARTITION,
    SWIN_WINDOW_REVERSE,
    SWIN_ATTENTION,
    SCALED_DOT_PRODUCT_ATTENTION,
    LAYER_NORM,
    RMS_NORM,
    GROUP_NORM,
    ACT_ADD,
    CONV_BN_ADD_ACT,
    CONV_BN_ACT_MAXPOOL,
    CONV_BN_ADD,
    CONV_BN_ACT,
    CONV_TRANSPOSE_BN_ACT,
    LINEAR_ACT,
    CONV_BN,
    LINEAR,
    ADAPTIVE_AVG_POOL,
)
KINDS = {kind.kind: kind for kind in CATALOGUE}

__all__ = ["CATALOGUE", "KINDS", "Finding", "FixedPair", "GroupKind", "Slot"]
