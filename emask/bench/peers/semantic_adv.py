"""SemanticAdv: feature maps between a face and its edited form (Qiu et al., ECCV 2020, arXiv 1906.07927).

A generator edits one attribute; of its feature maps without the edit, f_a, and with it, f_b, the attack takes

    f* = (1 - alpha) f_a + alpha f_b

with an alpha in [0, 1] for each location and channel, found by gradient descent for every photo: on the distance from
the target, and lambda times the total variation of alpha, L_smooth = sum (alpha_i+1,j - alpha_i,j)^2 +
(alpha_i,j+1 - alpha_i,j)^2. What is decoded from f* is the protected face.

From the released code (AI-secure/SemanticAdv): Adam with a rate of 0.05 for 200 steps, alpha = 0.8 at the start, lambda
= 0.01 on L_smooth as twice the sum of the mean squared differences down and across. There the distance is the mean
squared difference of unit embeddings of 256 numbers, (2 - 2 cos) / 256; here it is 1 - cos, 128 times as much, and so
is lambda. The code keeps alpha in [0.6, 1], which leaves the edit in place; `least` says that.

Our choice, where paper and code use a StarGAN of their own: E and D of emask's editor. E does not know the attributes,
D does, from its first layer on; so f_a and f_b are the outputs of D's layer number `layer`, decoded with all labels at
0 (as the face is) and with one of them at 1 or -1, as `emask protect --attribute` asks for an edit. D is too soft to
replace a photo, so what is added to it is the difference D(f*) - D(f_a), faded out towards the crop's border, as
`Generator.mask` and `compose` make an edit. (The code fits the generator's input to the photo first, to the same end.)
The paper has no budget and stops at the first success. Here the change is projected onto a budget like that of all
peers; descent sees the projected face, and makes all its steps, since there is no success without a threshold. The
paper tries 17 attributes one at a time; here it is one of the thirteen labels, by default Bangs, of those that
`emask protect` offers the one that D draws most by (a change of 20 in L2 norm, the mean of 8 photos). D's last layer,
since it reached the target best: 15 steps with a rate of 0.15 within an L2 budget of 8.95 took the mean cosine with it
from 0.05 to 0.61, and to 0.23, 0.43 and 0.54 by layers 0, 1 and 2 (3 photos of the training part, the three
surrogates of fold A).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emask.attributes import ATTRIBUTES
from emask.bench.peers.ball import EPS, Ball, Norm
from emask.bench.peers.similarity import Recognizer, dissimilarity, embed
from emask.nets.blocks import Decoder, feather_window
from emask.nets.generator import Editor


def decode_from(decoder: Decoder, layer: int, output: Tensor, features: Sequence[Tensor]) -> Tensor:
    """D from the output of one of its layers on; what it reads of the encoder beside that stays.

    Args:
        layer: number of the layer, the first being 0.
        output: (B, C, H, W) in the place of what the layer gives.
        features: the encoder's outputs, largest first.

    Returns:
        (B, 3, S, S) float32.
    """
    x = output
    for index in range(layer + 1, len(decoder.layers)):
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        x = decoder.layers[index](torch.cat([x, features[-1 - index]], 1))
    return decoder.to_image(x)


def variation(alpha: Tensor) -> Tensor:
    """L_smooth as the released code has it: (B, C, H, W) to (B,), twice the mean squared differences of neighbours."""
    down = (alpha[:, :, 1:] - alpha[:, :, :-1]).square().mean((1, 2, 3))
    across = (alpha[..., 1:] - alpha[..., :-1]).square().mean((1, 2, 3))
    return 2 * (down + across)


@dataclass(frozen=True)
class SemanticAdv:
    """An edit of one attribute, bent towards the target; see `Peer`. Nothing in it is random.

    Attributes:
        editor: E and D, in evaluation mode, for crops of its `config.size`.
        eps, norm: the budget, units of [-1, 1].
        attribute: the one that is changed, a name of `emask.attributes.ATTRIBUTES`.
        value: 1 turns it on, -1 off; how far, in between.
        layer: of D, whose outputs are mixed; 0 is the first.
        steps: of Adam.
        rate: its learning rate.
        start: alpha at first, everywhere.
        least: smallest alpha; the largest is 1.
        smoothness: lambda.

    Raises:
        ValueError: an editor in training mode, where faces depend on one another; no such attribute, or layer.
    """

    editor: Editor
    eps: float = EPS
    norm: Norm = "linf"
    attribute: str = "Bangs"
    value: float = 1.0
    layer: int = 3
    steps: int = 200
    rate: float = 0.05
    start: float = 0.8
    least: float = 0.0
    smoothness: float = 1.28

    def __post_init__(self) -> None:
        if self.editor.training:
            raise ValueError("the editor is in training mode")
        if self.attribute not in ATTRIBUTES:
            raise ValueError(f"no attribute {self.attribute}")
        if not 0 <= self.layer < len(self.editor.decoder.layers):
            raise ValueError(f"the decoder has no layer {self.layer}")

    def __call__(self, crop: Tensor, targets: Tensor, surrogates: Sequence[Recognizer]) -> Tensor:
        crop = crop.detach()
        ball, window = Ball(self.eps, self.norm), feather_window(crop.shape[-1]).to(crop)
        wanted = embed(targets, surrogates)
        labels = crop.new_zeros(len(crop), self.editor.config.attributes)
        edited = labels.clone()
        edited[:, ATTRIBUTES.index(self.attribute)] = self.value
        with torch.no_grad():
            features = self.editor.encoder(crop)
            plain, before = self.editor.decoder(features, labels)
            f_a, f_b = before[self.layer], self.editor.decoder(features, edited)[1][self.layer]
        alpha = torch.full_like(f_a, self.start).requires_grad_(True)
        optimizer = torch.optim.Adam([alpha], self.rate)

        def change() -> Tensor:
            """What is added to the photo, as alpha has it."""
            share = alpha.clamp(self.least, 1.0)
            mixed = decode_from(self.editor.decoder, self.layer, (1 - share) * f_a + share * f_b, features)
            return ball.project(crop, (mixed - plain) * window)

        for _ in range(self.steps):
            loss = dissimilarity(crop + change(), wanted, surrogates) + self.smoothness * variation(alpha)
            (alpha.grad,) = torch.autograd.grad(loss.sum(), [alpha])
            optimizer.step()
        with torch.no_grad():
            return change()
