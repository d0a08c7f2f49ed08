"""Train and sample with diffusers using white noise; `diffusers_training.py` changes only two lines of this script.

    python examples/diffusers_training_white.py                  # scikit-learn's 8x8 digits
    python examples/diffusers_training_white.py --mnist folder   # MNIST, downloaded to that folder if missing

The loop is the usual one: UNet2DModel, DDPMScheduler, accelerate, a cosine learning rate schedule, averaged
weights, and samples by DDPMPipeline.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST


def images(mnist: str | None) -> Tensor:
    """Return grey images between -1 and 1, (count, 1, height, width)."""
    if mnist is None:
        return torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    return MNIST(mnist, download=True).data[:, None].float() / 127.5 - 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, draw samples, and save the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder containing MNIST (default: the digits in scikit-learn)")
    parser.add_argument("--small", action="store_true", help="only a few steps, as a quick test")
    options = parser.parse_args(arguments)
    epochs, widths, inference_steps, count = (1, (8, 16), 5, 4) if options.small else (40, (32, 64), 250, 16)

    set_seed(0)
    data = images(options.mnist)[: 256 if options.small else None]
    loader = DataLoader(TensorDataset(data), batch_size=64, shuffle=True)
    model = UNet2DModel(
        sample_size=data.shape[-1],
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    total = epochs * len(loader)
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=total // 20, num_training_steps=total)
    accelerator = Accelerator()
    model, optimizer, loader, lr_scheduler = accelerator.prepare(model, optimizer, loader, lr_scheduler)
    ema = EMAModel(accelerator.unwrap_model(model).parameters(), decay=0.995, use_ema_warmup=True)

    for epoch in range(epochs):
        losses = []
        for (clean_images,) in loader:
            noise = torch.randn(clean_images.shape, device=clean_images.device)
            timesteps = torch.randint(0, 1000, (len(clean_images),), device=clean_images.device)
            noisy_images = noise_scheduler.add_noise(clean_images, noise, timesteps)
            noise_pred = model(noisy_images, timesteps, return_dict=False)[0]
            loss = F.mse_loss(noise_pred, noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            ema.step(accelerator.unwrap_model(model).parameters())
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / len(losses):.4f}")

    unet = accelerator.unwrap_model(model).eval()
    ema.copy_to(unet.parameters())
    pipeline = DDPMPipeline(unet, noise_scheduler)
    generator = torch.Generator().manual_seed(0)
    samples = pipeline(batch_size=count, generator=generator, num_inference_steps=inference_steps).images
    make_image_grid(samples, rows=2, cols=count // 2, resize=64).save("diffusers_samples.png")
    pipeline.save_pretrained("diffusers_model")
    print("wrote diffusers_samples.png and the pipeline in diffusers_model")


if __name__ == "__main__":
    main()
