"""Trains a small Swin, torchvision's own SwinTransformer, and exports it to ONNX.

    python models/digits_swin.py          # writes beside this file; needs torchvision, scikit-learn
    python models/digits_swin.py --score  # only scores the shipped file; needs no torch

See digits.py for the data and for what is written. Two stages of two blocks, heads of 16, windows
of 4x4 tokens: on the first stage's map of 8x8 the second block's are shifted by 2, on the second
stage's map of 4x4 one window covers it all, as in Swin-T's last stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from digits import Example, main

if TYPE_CHECKING:
    import torch

SIZE = 32
PATCH = 4
WIDTH = 32


def build() -> torch.nn.Module:
    """The untrained network; its first convolution takes one channel where torchvision's takes 3.

    Linears are drawn by Xavier: torchvision's 0.02 all but closes branches as narrow as these, and
    the network hardly starts to learn.
    """
    from architectures import import_torchvision
    from torch import nn

    transformer = import_torchvision().models.SwinTransformer(
        patch_size=[PATCH, PATCH],
        embed_dim=WIDTH,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        mlp_ratio=2.0,
        stochastic_depth_prob=0.0,
        num_classes=10,
    )
    transformer.features[0][0] = nn.Conv2d(1, WIDTH, PATCH, PATCH)
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return transformer


EXAMPLE = Example(
    "digits_swin", "digits_32", build, SIZE, epochs=80, batch=32, shift_each=True, rate=3e-3
)

if __name__ == "__main__":
    main(EXAMPLE)
