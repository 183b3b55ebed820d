"""Predict a random binary code of the label, without weight transport."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import at_least, checks_arguments
from layerwise.errors import InputError
from layerwise.heads.head import feature_maps, fewer_positions
from layerwise.inputs import Inputs
from layerwise.labels import IGNORED, counted, rows_of
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import Predicting, Site


class PredictProjection(Predicting):
    """Predict a fixed random binary code of the label, without weight transport.

    Nøkland & Eidnes 2019 (arXiv:1901.06656), "pred-bpf" in the paper. The code of class c has the
    bits [R e_c > 0], with a random matrix R. A linear layer predicts it, and feedback alignment
    (Lillicrap et al. 2016) sends the error to the block through a fixed random matrix B:

        z = W h + b,    L = binary cross-entropy(z, code),    dL/dh = B^T dL/dz

    L is in nats, the mean over samples and bits. Feature maps are first averaged down to at most
    `features` numbers. With `feedback_alignment=False` the error goes back through W.

    The code of a soft label is the mean of the classes' codes, weighted by their probabilities. A
    label that does not count is left out. The class scores, z . code_c, are the log-likelihoods of
    the classes' codes up to a constant.

    Deviation: W starts as PyTorch's linear layers do (the authors' starts at zero).

    Args:
        projection: number of bits of the code.
        features: largest number of values of feature maps that the linear layer reads, as in
            `heads.Linear`.
        feedback_alignment: whether the error goes back through fixed random weights.

    Raises:
        InputError: sizes below one; when it is built, a network that does not give class scores for
            whole samples.
    """

    codes: Tensor  # (classes, projection), 0 or 1
    feedback: Tensor  # B, (projection, numbers read); absent without feedback alignment

    @checks_arguments
    def __init__(
        self, projection: int = 128, features: int = 4096, feedback_alignment: bool = True
    ):
        super().__init__()
        at_least(1, "PredictProjection", projection=projection, features=features)
        self.projection = projection
        self.features = features
        self.feedback_alignment = feedback_alignment
        self.pool: nn.Module = nn.Identity()
        self.linear: nn.Module = nn.Identity()

    def build(self, site: Site) -> None:
        if len(site.output_shape) != 1:
            raise InputError(
                f"PredictProjection: the network gives {site.output_shape} for each sample; this "
                "objective needs one label for each whole sample: (classes,)"
            )
        shape, layers = site.shape, []
        if len(shape) == 3:
            layers, maps = feature_maps(shape, "PredictProjection")
            shape = fewer_positions(maps, self.features)
            layers += [nn.AdaptiveAvgPool2d(shape[1:])] if shape != maps else []
        self.pool = nn.Sequential(*layers, nn.Flatten())
        self.linear = nn.Linear(math.prod(shape), self.projection)
        random = nn.Linear(*site.output_shape, self.projection, bias=False).weight.detach()
        self.register_buffer("codes", (random.T > 0).float())
        other = nn.Linear(math.prod(shape), self.projection, bias=False).weight.detach()
        self.register_buffer("feedback", other.clone() if self.feedback_alignment else None)

    @property
    def reads_input(self) -> bool:
        return False

    def predict(self, h: Tensor, inputs: Inputs = None) -> Tensor:
        """Class scores, (B, C)."""
        z_BP = self.linear(self.pool(h))
        return z_BP @ self.codes.T.to(z_BP.dtype)

    def forward(
        self, activity: Activity, batch: Batch, scores: list[Tensor] | None = None
    ) -> Tensor:
        h, labels = self.pool(activity.output), batch.labels
        if self.feedback_alignment:
            z_BP = self.linear(h.detach())
            sent = F.linear(h, self.feedback)
            z_BP = z_BP + (sent - sent.detach())  # adds nothing but B's gradient
        else:
            z_BP = self.linear(h)
        if scores is not None:
            scores.append(z_BP.detach() @ self.codes.T.to(z_BP.dtype))
        z_BP = z_BP.to(torch.promote_types(z_BP.dtype, torch.float32))
        code_BP = rows_of(self.codes, labels).to(z_BP.dtype)
        if labels.is_floating_point():
            return F.binary_cross_entropy_with_logits(z_BP, code_BP)
        known = (labels != IGNORED).to(z_BP.dtype)
        loss = F.binary_cross_entropy_with_logits(z_BP, code_BP, known.unsqueeze(1))
        return loss * (len(known) / counted(labels).to(loss.dtype))

    def extra_repr(self) -> str:
        return f"projection={self.projection}, feedback_alignment={self.feedback_alignment}"
