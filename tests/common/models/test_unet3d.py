from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from common.losses import build_loss
from common.models.unet3d import UNet3D, build_model
from common.plan.plan import ModelPlan

ISOTROPIC = ModelPlan(
    in_channels=2,
    classes=3,
    channels=(4, 8, 12),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    kernels=((3, 3, 3),) * 3,
    blocks=(1, 2, 1),
    decoder_blocks=1,
    groups=2,
)
ANISOTROPIC = ISOTROPIC.model_copy(
    update={
        "strides": ((1, 1, 1), (2, 2, 1), (2, 4, 2)),
        "kernels": ((3, 3, 1), (5, 3, 1), (3, 3, 3)),
        "decoder_blocks": 2,
    }
)
PLANS = [
    pytest.param(
        plan.model_copy(update={"residual": residual, "deep_supervision": deep}), id=f"{name}-{residual}-{deep}"
    )
    for name, plan in (("isotropic", ISOTROPIC), ("anisotropic", ANISOTROPIC))
    for residual in (False, True)
    for deep in (False, True)
]

Gradients = dict[str, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small lose more by waking threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_case(plan: ModelPlan, batch: int = 3) -> tuple[UNet3D, nn.Module, Tensor, Tensor]:
    torch.manual_seed(7)
    model = build_model(plan).double()
    for parameter in model.parameters():  # gains of one and biases of zero would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    image = torch.randn(batch, plan.in_channels, 8, 16, 4, dtype=torch.float64)
    label = torch.randint(0, plan.classes, (batch, 8, 16, 4), dtype=torch.uint8)
    return model, build_loss("dice_ce", None, plan.deep_supervision), image, label


def gradients_one_sample_at_a_time(model: nn.Module, loss: nn.Module, image: Tensor, label: Tensor) -> Gradients:
    samples = []
    for index in range(len(image)):
        model.zero_grad()
        loss(model(image[index : index + 1]), label[index : index + 1]).backward()
        samples.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def assert_same_gradients(actual: Gradients, expected: Gradients) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, f"{name} gets no gradient"
        torch.testing.assert_close(
            actual[name], gradient, rtol=1e-7, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the image itself needs no gradient
@pytest.mark.parametrize("plan", PLANS)
def test_opacus_hooks_give_the_gradients_of_single_samples(plan: ModelPlan) -> None:
    model, loss, image, label = make_case(plan)
    expected = gradients_one_sample_at_a_time(copy.deepcopy(model), loss, image, label)
    hooked = GradSampleModule(model)
    loss(hooked(image), label).backward()
    actual = {name.removeprefix("_module."): parameter.grad_sample for name, parameter in hooked.named_parameters()}
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("plan", PLANS)
def test_vmap_gives_the_gradients_of_single_samples(plan: ModelPlan) -> None:
    model, loss, image, label = make_case(plan)
    expected = gradients_one_sample_at_a_time(copy.deepcopy(model), loss, image, label)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def sample_loss(values: Gradients, one_image: Tensor, one_label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, values, (one_image.unsqueeze(0),))
        return loss(logits, one_label.unsqueeze(0))

    actual = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0))(parameters, image, label)
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("plan", PLANS)
def test_gradient_of_a_batch_is_the_mean_over_its_samples(plan: ModelPlan) -> None:
    model, loss, image, label = make_case(plan)
    expected = gradients_one_sample_at_a_time(model, loss, image, label)
    model.zero_grad()
    loss(model(image), label).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].mean(0), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("plan", PLANS)
def test_skips_are_not_changed_in_place(plan: ModelPlan) -> None:
    model, _, image, _ = make_case(plan)
    skips: list[tuple[Tensor, Tensor]] = []
    for stage in model.encoder:
        stage.register_forward_hook(lambda module, inputs, output: skips.append((output, output.detach().clone())))
    model(image)
    assert len(skips) == len(plan.channels)
    assert all(torch.equal(skip, copied) and skip._version == 0 for skip, copied in skips)


def test_deep_supervision_gives_all_decoder_stages_in_training_only() -> None:
    plan = ANISOTROPIC.model_copy(update={"deep_supervision": True})
    model, _, image, _ = make_case(plan, batch=2)
    outputs = model(image)
    assert [tuple(output.shape) for output in outputs] == [(2, 3, 8, 16, 4), (2, 3, 4, 8, 4)]
    torch.testing.assert_close(model.eval()(image), outputs[0])


def test_a_stride_in_the_first_stage_is_undone_at_the_end() -> None:
    plan = ISOTROPIC.model_copy(update={"strides": ((2, 2, 1), (2, 2, 2), (2, 2, 2))})
    model = build_model(plan)
    assert model(torch.zeros(1, 2, 8, 16, 4)).shape == (1, 3, 8, 16, 4)


@pytest.mark.parametrize(
    ("channels", "deep", "low", "high"),
    [((16, 32, 64, 128), False, 1.3e6, 1.4e6), ((32, 64, 128, 256), True, 5.2e6, 5.7e6)],
)
def test_number_of_parameters(channels: tuple[int, ...], deep: bool, low: float, high: float) -> None:
    model = build_model(ModelPlan(classes=3, channels=channels, deep_supervision=deep))
    assert low < sum(parameter.numel() for parameter in model.parameters()) < high


def test_initial_weights_depend_on_the_seed_alone() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_model(ISOTROPIC).state_dict()["encoder.0.0.conv.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_initial_signal_neither_fades_nor_explodes() -> None:
    torch.manual_seed(0)
    logits = build_model(ModelPlan(classes=3)).eval()(torch.randn(1, 1, 16, 16, 16))
    assert 0.3 < logits.std() < 5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_bfloat16_autocast_stays_near_float32(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    plan = ModelPlan(
        classes=3,
        channels=(8, 16, 32),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        kernels=((3, 3, 3),) * 3,
        blocks=(2, 2, 2),
    )
    model = build_model(plan)
    loss = build_loss("dice_ce", None, False)
    image, label = torch.randn(2, 1, 16, 16, 16), torch.randint(0, 3, (2, 16, 16, 16))
    logits, gradients = [], []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits.append(model(image.to(memory_format=memory_format)))
            value = loss(logits[-1], label)
        value.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert value.dtype == torch.float32
    assert (logits[0] - logits[1]).norm() < 0.04 * logits[0].norm()
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.97


def test_learns_a_threshold() -> None:
    torch.manual_seed(0)
    plan = ModelPlan(
        classes=2, channels=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3),) * 2, blocks=(1, 1)
    )
    model, loss = build_model(plan), build_loss("dice_ce", None, False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    image = torch.randn(2, 1, 8, 8, 8)
    label = (image[:, 0] > 0.5).to(torch.uint8)
    first = loss(model(image), label).item()
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(model(image), label)
        value.backward()
        optimizer.step()
    assert value.item() < first / 4


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 1, 8, 8, 8), "expected"), ((2, 8, 8, 8), "expected"), ((1, 2, 8, 10, 8), "multiples of")],
)
def test_input_that_does_not_fit_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(ISOTROPIC)(torch.zeros(shape))
