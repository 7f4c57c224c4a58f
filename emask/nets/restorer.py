"""The restorer R: takes the mask off a protected crop, from the crop alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from emask.nets.blocks import feather_window, fold_norms
from emask.nets.generator import Editor


class Restorer(nn.Module):
    """E and D again, but what comes out is a change to the protected pixels, so that nothing is blurred.

    The mask is grey, and so is what takes it off: erasing cannot leave a colour cast. Starts from stage 1's E and D
    with the last step set to zero: at first nothing is changed.
    """

    window: Tensor

    def __init__(self, editor: Editor) -> None:
        super().__init__()
        self.config = editor.config
        body = copy.deepcopy(editor).eval()
        fold_norms(body)
        self.encoder, self.decoder = body.encoder, body.decoder
        nn.init.zeros_(self.decoder.to_image.weight)
        assert self.decoder.to_image.bias is not None
        nn.init.zeros_(self.decoder.to_image.bias)
        self.register_buffer("window", feather_window(self.config.size), persistent=False)

    def forward(self, crop: Tensor) -> Tensor:
        """(B, 3, S, S) float32 protected RGB in [-1, 1] to the (B, 3, S, S) change; crop + change is in [-1, 1]."""
        labels = crop.new_zeros((crop.shape[0], self.config.attributes))
        change, _ = self.decoder(self.encoder(crop), labels)
        grey = change.mean(1, keepdim=True)
        return torch.clamp(crop + grey * self.window, -1.0, 1.0) - crop
