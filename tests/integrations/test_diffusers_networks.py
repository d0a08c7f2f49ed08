"""Networks and discrete schedules of diffusers in the place of ours compute what diffusers itself computes."""

import diffusers
import pytest
import torch

import multisagd as ms
from multisagd.integrations.discrete import DiscreteSchedule
from multisagd.integrations.networks import DiffusersNetwork
from tests.helpers.networks import Affine
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import random_statistics

SMALL = {"block_out_channels": [32, 32], "layers_per_block": 1}
TRANSFORMER = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 8}
# class, channels, an odd grid, options
CLASSES = {
    "UNet1DModel": (2, (37,), {"block_out_channels": [32, 32, 32]}),
    "UNet2DModel": (3, (7, 9), SMALL),
    "UNet2DConditionModel": (1, (7, 10), SMALL),
    "UNet3DConditionModel": (1, (3, 5, 6), SMALL),
    "DiTTransformer2DModel": (2, (7, 9), TRANSFORMER),
}


def built(name: str, **arguments: object) -> DiffusersNetwork:
    torch.manual_seed(0)
    channels, grid, options = CLASSES[name]
    options = {**options, **arguments.pop("options", {})}  # type: ignore[dict-item]
    return DiffusersNetwork(channels, len(grid), name, options, **arguments).eval()  # type: ignore[arg-type]


def noisy(name: str, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    channels, grid, _ = CLASSES[name]
    x = torch.randn(batch, channels, *grid, generator=torch.Generator().manual_seed(1))
    return x, torch.linspace(-4, 6, batch)


@pytest.mark.parametrize("name", CLASSES)
def test_diffusers_network_of_every_class_takes_odd_grids(name: str) -> None:
    """The output is like x, follows from each item alone, tells noise levels apart, and every weight learns."""
    network = built(name)
    x, log_snr = noisy(name)
    output = network(x, log_snr)
    assert output.shape == x.shape
    output.square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None] == []
    with torch.no_grad():
        torch.testing.assert_close(network(x[1:], log_snr[1:]), output[1:], rtol=1e-4, atol=1e-5)
        for near in (0.2, -0.2):
            moved = network(x, log_snr + near) - output
            assert (moved.flatten(1).norm(dim=1) > 1e-4 * output.flatten(1).norm(dim=1)).all()
    channels, grid, options = CLASSES[name]
    with torch.no_grad():
        wide = built(name, out_channels=3 * channels)(x, log_snr)
    assert wide.shape == (len(x), 3 * channels, *grid)
    with torch.device("meta"):
        outline = DiffusersNetwork(channels, len(grid), name, options, clock=DiscreteSchedule(steps=50)).state_dict()
    assert {key: w.shape for key, w in outline.items()} == {key: w.shape for key, w in network.state_dict().items()}


def test_diffusers_network_computes_what_diffusers_computes_at_its_own_timesteps() -> None:
    """With the clock of a DDPM scheduler, a log-SNR of its table gives the network at that very timestep."""
    clock = {"clock": DiscreteSchedule(), "scale": 1000.0, "offset": -1.0}
    network = built("UNet2DModel", **clock)
    theirs = diffusers.UNet2DModel(**network.model.config)  # type: ignore[arg-type]
    theirs.load_state_dict(network.model.state_dict())
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    kept = diffusers.DDPMScheduler().alphas_cumprod.double()
    for steps in ([0, 1, 2, 10], [100, 500, 998, 999]):
        levels = (kept[steps] / (1 - kept[steps])).log().float()
        with torch.no_grad():
            expected = theirs.eval()(x, torch.tensor(steps)).sample
            torch.testing.assert_close(network(x, levels), expected, rtol=2e-4, atol=2e-4)
    network = built("UNet2DConditionModel", context=6, **clock)
    x, text = x[:2, :1, :4], torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(5))
    log_snr = DiscreteSchedule().log_snr(torch.tensor([0.101, 0.5], dtype=torch.float64)).float()
    with torch.no_grad():
        expected = network.model(x, torch.tensor([100, 499]), encoder_hidden_states=text).sample
        torch.testing.assert_close(network(x, log_snr, text), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"])
def test_diffusers_network_learns_classes_and_no_class(name: str) -> None:
    network = built(name, classes=3)
    # What a class changes in a fresh transformer is gated by zeros.
    generator = torch.Generator().manual_seed(3)
    for weight in network.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
    x, log_snr = noisy(name, 4)
    x, log_snr = x[:1].expand_as(x), log_snr[:1].expand(4)
    with torch.no_grad():
        output, none = network(x, log_snr, torch.arange(4)), network(x, log_snr)
    torch.testing.assert_close(output[3], none[3])  # the last label is none
    assert all((output[i] - output[j]).abs().max() > 1e-4 for i in range(4) for j in range(i))
    network.train()  # diffusers' transformers leave labels out by themselves then
    with torch.no_grad():
        again = torch.stack([network(x, log_snr, torch.full((4,), 1)) for _ in range(8)])
    assert (again - again[0, 0]).abs().max() < 1e-4
    with pytest.raises(ValueError, match=r"out of range: this network has labels 0 to 2, and 3 for no class"):
        network(x, log_snr, torch.full((4,), 4))


def test_diffusers_network_takes_texts_of_any_padding_and_no_text() -> None:
    network = built("UNet2DConditionModel", context=6)
    x, log_snr = noisy("UNet2DConditionModel", 3)
    text = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(4))
    text[1, 1:] = 0  # one token
    text[2] = 0  # none
    with torch.no_grad():
        output = network(x, log_snr, text)
        padded = network(x, log_snr, torch.cat([text, torch.zeros(3, 5, 6)], dim=1))
        alone = network(x[1:2], log_snr[1:2], text[1:2, :1])
        none = network(x, log_snr)
    torch.testing.assert_close(padded, output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone[0], output[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(none[2], output[2], rtol=1e-4, atol=1e-5)
    assert (none[0] - output[0]).abs().max() > 1e-5
    with pytest.raises(ValueError, match=r"condition must be text embeddings, float of shape \(3, tokens, 6\)"):
        network(x, log_snr, torch.zeros(3, 2, 5))


def test_diffusers_network_drops_a_learned_variance() -> None:
    network = built("DiTTransformer2DModel", options={"out_channels": 4})
    x, log_snr = noisy("DiTTransformer2DModel")
    assert network.model.config["out_channels"] == 4
    assert network(x, log_snr).shape == x.shape


@pytest.mark.parametrize(
    ("name", "options", "ends"),
    [
        ("UNet1DModel", {}, [-2.5, 2.5]),
        ("UNet1DModel", {"time_embedding_type": "positional"}, [0.0, 1000.0]),
        ("UNet1DModel", {"time_embedding_dim": 48}, [-2.5, 2.5]),
        ("UNet2DConditionModel", {"time_embedding_type": "fourier"}, [-2.5, 2.5]),
    ],
)
def test_diffusers_network_scales_time(name: str, options: dict[str, object], ends: list[float]) -> None:
    seen: list[torch.Tensor] = []
    network = built(name, options=options)
    network.model.time_proj.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))  # type: ignore[union-attr, operator]
    x, _ = noisy(name, 3)
    assert network(x, torch.tensor([20.0, 0.0, -20.0])).isfinite().all()
    torch.testing.assert_close(seen[0], torch.tensor([ends[0], sum(ends) / 2, ends[1]]))


@pytest.mark.slow
def test_diffusers_network_compiles_without_a_break() -> None:
    network = built("UNet2DModel", classes=2, clock=DiscreteSchedule(steps=20), scale=20.0, offset=-1.0)
    x, log_snr = noisy("UNet2DModel")
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        for condition in (None, torch.tensor([0, 1])):
            assert torch.equal(compiled(x, log_snr, condition), network(x, log_snr, condition))


TEXT = {"name": "UNet2DConditionModel", "context": 8}
MISTAKES = [
    ({"name": "AutoencoderKL"}, "cannot use diffusers' 'AutoencoderKL': choose one of UNet1DModel, UNet2DModel"),
    ({"name": "os.system"}, "cannot use diffusers' 'os.system'"),
    ({"dimensions": 1}, "UNet2DModel is for 2 grid dimensions, but the data have 1: choose UNet1DModel"),
    ({"dimensions": 4}, "the data have 4: use a network of multisagd.networks"),
    ({"context": 8}, "UNet2DModel does not support text: remove text=encoder"),
    ({**TEXT, "classes": 2}, "a network supports classes or text, not both"),
    ({"name": "UNet1DModel", "dimensions": 1, "classes": 3}, "UNet1DModel does not support classes"),
    ({"classes": 5, "options": {"num_class_embeds": 5}}, "num_class_embeds=5 means 4 classes and the null class, but"),
    ({**TEXT, "options": {"cross_attention_dim": 9}}, "cross_attention_dim=9, but the text embeddings have width 8"),
    ({**TEXT, "options": {"cross_attention_dim": [8] * 3}}, r"cross_attention_dim=\[8, 8, 8\] must be a single number"),
    (
        {"name": "UNet1DModel", "dimensions": 1, "options": {"block_out_channels": []}},
        r"block_out_channels=\[\] must be a list",
    ),
    ({"name": "UNet2DConditionModel", "options": {"encoder_hid_dim": 8}}, "encoder_hid_dim=8 requires a"),
]
OPTIONS = [
    ({"width": 8}, "UNet2DModel has no option 'width'; it has sample_size, in_channels"),
    ({"in_channels": 4}, "options specify 4 in and 3 out channels, but 3 in and 3 out are needed"),
    ({"class_embed_type": "timestep"}, "class_embed_type='timestep' requires a condition"),
    ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier' accepts only integer timesteps"),
    ({"time_embedding_type": "learned"}, "time_embedding_type='learned' accepts only integer timesteps"),
    ({"block_out_channels": [-4, 32]}, r"block_out_channels=\[-4, 32\] must be a list with the width of each"),
    ({"down_block_types": ["evil.Evil"] * 3}, "cannot be built with|does not exist"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), [*MISTAKES, *(({"options": options}, message) for options, message in OPTIONS)]
)
def test_diffusers_network_refuses_what_does_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusersNetwork(**{"channels": 3, "dimensions": 2, **arguments})  # type: ignore[arg-type]


CURVES = [
    ({}, {}),
    ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, {"betas": "scaled_linear"}),
    ({"beta_schedule": "squaredcos_cap_v2"}, {"betas": "squaredcos_cap_v2"}),
    ({"beta_schedule": "sigmoid"}, {"betas": "sigmoid"}),
    ({"num_train_timesteps": 50, "beta_end": 0.3}, {"steps": 50, "beta_end": 0.3}),
    ({"num_train_timesteps": 3, "trained_betas": [0.1, 0.2, 0.4]}, {"steps": 3, "betas": (0.1, 0.2, 0.4)}),
]


@pytest.mark.parametrize(("theirs", "ours"), CURVES, ids=str)
def test_discrete_schedule_has_the_noise_of_diffusers_at_every_timestep(theirs: dict, ours: dict) -> None:
    values = {key: theirs[key] for key in ("beta_start", "beta_end") if key in theirs}
    schedule = DiscreteSchedule(**{**values, **ours})
    kept = diffusers.DDPMScheduler(**theirs).alphas_cumprod.double()
    t = torch.arange(1, len(kept) + 1, dtype=torch.float64) / len(kept)
    alpha, sigma = schedule.alpha_sigma(t)
    # Theirs is a product in single precision, and 1 - ᾱ loses its digits near the data.
    torch.testing.assert_close(alpha, kept.sqrt(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sigma, (1 - kept).sqrt(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-9)


def test_discrete_schedule_of_zero_terminal_snr_ends_in_noise_alone() -> None:
    options = {"num_train_timesteps": 100, "beta_end": 0.2, "rescale_betas_zero_snr": True}
    kept = diffusers.DDIMScheduler(**options).alphas_cumprod.double()
    schedule = DiscreteSchedule(steps=100, beta_end=0.2, zero_terminal_snr=True)
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    assert float(schedule.log_snr(t[-1])) == -20
    torch.testing.assert_close(schedule.alpha_sigma(t)[0][:-1], kept.sqrt()[:-1], rtol=1e-3, atol=1e-5)


def test_discrete_schedule_refuses_invalid_betas() -> None:
    beyond = r"outside log_snr_range=\[-20.0, 20.0\], where they are indistinguishable: use fewer steps"
    assert_refused(
        ("at least two betas between 0 and 1, got 1", lambda: DiscreteSchedule(steps=1)),
        (
            "expected 3 betas for a discrete schedule of 3 steps, got 2",
            lambda: DiscreteSchedule(steps=3, betas=(0.1, 0.2)),
        ),
        ("between 0 and 1", lambda: DiscreteSchedule(steps=2, betas=(0.1, 1.5))),
        (beyond, lambda: DiscreteSchedule(beta_end=0.3)),
        ("outside log_snr_range=", lambda: DiscreteSchedule(beta_start=1e-12, beta_end=1e-11)),
        ("unknown betas 'linera'; choose linear, scaled_linear", lambda: DiscreteSchedule(betas="linera")),
    )


def test_denoiser_that_is_not_centred_gives_the_network_the_mean_too() -> None:
    grid = ms.Grid.of(height=8, width=8)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid))
    network, statistics = Affine(), random_statistics(grid, channels=1)
    x_t, t = torch.ones(2, 1, 8, 8), torch.tensor([0.3, 0.6])
    alpha = process.coefficients(t, x_t).a
    for centred in (False, True):
        estimate = ms.Denoiser(network, process, "noise", statistics=statistics, centred=centred)(x_t, t)
        mean = statistics.mean.float() if centred else torch.zeros(())
        torch.testing.assert_close(network.inputs[-1], x_t - alpha * mean)
        torch.testing.assert_close(estimate, mean + (x_t - alpha * mean) / alpha)
