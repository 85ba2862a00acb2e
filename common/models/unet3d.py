"""A 3D U-Net with GroupNorm, built from a plan (Ronneberger et al., 2015; Cicek et al., 2016; Isensee et al., 2021)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from common.models.blocks import NEGATIVE_SLOPE, ConvBlock, ResidualBlock, UpBlock
from common.plan.base import Axes3, Kernel, Stride
from common.plan.plan import ModelPlan


class UNet3D(nn.Module):
    """A U-Net in which no operation mixes the samples of a batch.

    The encoder has plain or residual blocks, as the plan specifies; the decoder has plain blocks. With deep
    supervision every decoder stage has a 1 x 1 x 1 head, otherwise only the finest. Weight names are the same in
    training and prediction.
    """

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__()
        self.divisors = plan.divisors
        self.in_channels = plan.in_channels
        self._input_stride = tuple(float(stride) for stride in plan.strides[0])
        self.encoder = nn.ModuleList(
            _encoder_stage(inputs, outputs, kernel, stride, blocks, plan)
            for inputs, outputs, kernel, stride, blocks in zip(
                (plan.in_channels, *plan.channels[:-1]),
                plan.channels,
                plan.kernels,
                plan.strides,
                plan.blocks,
                strict=True,
            )
        )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.heads = nn.ModuleList()
        for stage in reversed(range(len(plan.channels) - 1)):
            fine = plan.channels[stage]
            self.up.append(UpBlock(plan.channels[stage + 1], fine, plan.strides[stage + 1]))
            self.decoder.append(_plain_stage(2 * fine, fine, plan.kernels[stage], plan.decoder_blocks, plan.groups))
            has_head = plan.deep_supervision or stage == 0
            self.heads.append(nn.Conv3d(fine, plan.classes, 1) if has_head else nn.Identity())
        self.deep_supervision = plan.deep_supervision
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute class scores before the softmax.

        Parameters
        ----------
        x
            (batch, channels, x, y, z); sizes along x, y, z must be multiples of ``divisors``.

        Returns
        -------
        Tensor | tuple[Tensor, ...]
            Logits (batch, classes, x, y, z). In training with deep supervision, a tuple with the logits of every
            decoder stage at the stage's own size, finest first.

        Raises
        ------
        ValueError
            If the number of channels or a size does not fit the network.
        """
        self._check_shape(x)
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        supervised = self.deep_supervision and self.training
        outputs: list[Tensor] = []
        skips.pop()
        for up, stage, head in zip(self.up, self.decoder, self.heads, strict=True):
            x = stage(up(x, skips.pop()))
            if supervised or not skips:
                outputs.append(head(x))
        if self._input_stride != (1.0, 1.0, 1.0):
            outputs[-1] = F.interpolate(outputs[-1], scale_factor=self._input_stride, mode="trilinear")
        return tuple(reversed(outputs)) if supervised else outputs[-1]

    def _check_shape(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected (batch, {self.in_channels}, x, y, z), got {tuple(x.shape)}")
        if any(size % divisor for size, divisor in zip(x.shape[2:], self.divisors, strict=True)):
            raise ValueError(f"sizes {tuple(x.shape[2:])} must be multiples of {self.divisors}: pad the patch")


def build_model(plan: ModelPlan) -> UNet3D:
    """Return a freshly initialised network; its weights depend only on the state of torch's global generator."""
    return UNet3D(plan)


def _encoder_stage(
    inputs: int, outputs: int, kernel: Kernel, stride: Stride, blocks: int, plan: ModelPlan
) -> nn.Sequential:
    block = ResidualBlock if plan.residual else ConvBlock
    stage = [block(inputs, outputs, kernel, stride, plan.groups)]
    stage += [block(outputs, outputs, kernel, (1, 1, 1), plan.groups) for _ in range(blocks - 1)]
    return nn.Sequential(*stage)


def _plain_stage(inputs: int, outputs: int, kernel: Axes3, blocks: int, groups: int) -> nn.Sequential:
    stage = [ConvBlock(inputs, outputs, kernel, (1, 1, 1), groups)]
    stage += [ConvBlock(outputs, outputs, kernel, (1, 1, 1), groups) for _ in range(blocks - 1)]
    return nn.Sequential(*stage)


def _initialise(module: nn.Module) -> None:
    """Scale convolution weights for leaky ReLUs (He et al., 2015); biases start at zero.

    Weights on the meta device have no values. Drawing some all the same loads PyTorch's compiler, which takes seconds.
    """
    if isinstance(module, nn.Conv3d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
