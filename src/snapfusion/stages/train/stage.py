"""From pictures with captions to a text-to-image checkpoint.

    pictures -> autoencoder (frozen from here on) -> latents and embeddings on disk -> UNet -> RUN/checkpoint

Each part is skipped where its result is there; to resume after a kill, run the same command.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from snapfusion.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_unet,
    load_vae,
    minilm_text_encoder,
    save_checkpoint,
    save_vae,
)
from snapfusion.data.pairs import Pair, read_images
from snapfusion.data.stickers import build
from snapfusion.denoising import denoising_loss, draw_batch
from snapfusion.fit import Fit, FitConfig, Share, device_of_run, fit
from snapfusion.json_file import read_json, write_json
from snapfusion.latents import Cache, Encoders, Shares, encode_images, encode_prompts, load_caches, train_and_cells
from snapfusion.metrics.lpips import load_lpips
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.unet import ElasticUNet
from snapfusion.model.widen import widen
from snapfusion.processes import main_first, meet, rank
from snapfusion.progress import log_to_terminal
from snapfusion.stage_folder import PausedError
from snapfusion.stages.train.autoencoder import Reconstruct, draw_crops, sticker_autoencoder
from snapfusion.stages.train.config import Config, Result, check_config, printable, read_result
from snapfusion.stages.train.sheet import PROMPTS
from snapfusion.stages.train.unet import STICKER_WIDTHS, sticker_schedule, sticker_unet
from snapfusion.stages.train.watch import Watch

log = logging.getLogger(__name__)


def start(config: Config, data: Path | None, out: Path, init: Path | None = None) -> Result:
    """`run`, with progress on the terminal, on a set that is built first where `data` names none."""
    log_to_terminal()
    if data is None:
        data = main_first(lambda: build(out / "data", cache=out / "packages"))
    return run(config, data, out, init)


def run(config: Config, data: Path, out: Path, init: Path | None = None) -> Result:
    """Train on the set in `data` and write `out / "checkpoint"`.

    `init` is a checkpoint to go on from: its UNet is trained on with a fresh optimiser, and its autoencoder is kept
    unless the config says otherwise.

    Raises:
        ValueError: no set in `data`, no checkpoint in `init`, or `out` holds a run of another config.
        PausedError: `max_seconds` are over; `out / "checkpoint"` then holds the best weights so far.
    """
    main_first(lambda: check_config(config, init, out))
    if (finished := read_result(config, out)) is not None:
        return finished
    train, _ = train_and_cells(data, core=False)
    if init is not None:
        check_size(init, data, train)
    if init is not None and config.autoencoder == "keep":
        vae = load_vae(init)
    else:
        vae = train_autoencoder(config, train, data, out, init)
    device = device_of_run()
    vae.requires_grad_(False).eval().to(device)  # pyright: ignore[reportArgumentType]
    text_encoder, tokenizer = minilm_text_encoder()
    encoders = Encoders(vae, text_encoder.eval().to(device), tokenizer, config.length)
    given = (out / "cache", data, config.subset == "core", encoders, config.variants, config.seed)
    cache, held_out = main_first(lambda: load_caches(*given))
    copies = int(cache.recoloured.sum())
    log.info("%d pictures and %d recoloured, %d sentences", len(cache.latents) - copies, copies, len(cache.embeddings))

    widths, side = config.widths or STICKER_WIDTHS, cache.latents.shape[-1]
    if init is None:
        channels, width = vae.config["latent_channels"], text_encoder.width
        unet = seeded(config.seed, lambda: sticker_unet(channels, width, widths, side))
    else:
        unet = load_unet(init)
        if config.widths not in (None, unet.architecture.widths):
            unet = widen(unet, config.widths, seed=config.seed)
    schedule = sticker_schedule()
    unet.to(device)  # pyright: ignore[reportArgumentType]
    cache, held_out = cache.to(device), held_out.to(device)
    watch = Watch(
        out / "unet",
        config.batch,
        config.patience,
        cache,
        held_out,
        vae,
        encode_prompts(list(PROMPTS), encoders).to(device),
        Shares(mirrored=config.mirrored),
    )
    checkpoint, steps, paused = Checkpoint(tokenizer, config.length, text_encoder, unet, vae, schedule), 0, None
    try:
        steps = train_unet(config, unet, cache, out / "unet", watch).step
    except PausedError as error:
        paused = error  # but leave the best weights so far to look at
    loss = watch.restore(unet) if config.keep == "best" else watch.loss_of(unet)
    if rank() == 0:
        save_checkpoint(checkpoint, out / "checkpoint", torch.float16)
        load_checkpoint(out / "checkpoint")  # what was written is whole
    if paused is not None:
        raise paused
    result = Result(steps, steps * config.batch, loss, str(out / "checkpoint"))
    if rank() == 0:
        write_json(out / "result.json", {"config": printable(config), "result": asdict(result)})
    meet()
    return result


def check_size(init: Path, data: Path, train: list[Pair]) -> None:
    """Raise `ValueError` where a set's pictures are not of the size that the checkpoint `init` draws."""
    side = read_images(data, train[:1]).shape[1] // load_vae(init).factor
    if (own := read_json(init / "unet" / "config.json")["sample_size"]) != side:
        raise ValueError(f"got {data} with latents of {side}x{side}, expected the {own}x{own} that {init} draws")


def seeded(seed: int, build: Any) -> Any:
    """`build()` with initial weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def train_autoencoder(
    config: Config, train: list[Pair], data: Path, out: Path, init: Path | None = None
) -> PatchAutoencoderKL:
    """The autoencoder in `out`, trained first if it is not there, from `init`'s weights if there is one.

    Its latents' scale is measured and stored in it, unless the encoder is left as it was.
    """
    if (out / "vae" / "config.json").exists():
        return load_vae(out)
    images = read_images(data, train)
    begun = load_vae(init) if init is not None else seeded(config.seed, lambda: sticker_autoencoder(images.shape[1]))
    encoder_stays = init is not None and config.autoencoder == "decoder"
    begun.train()
    for name, parameter in begun.named_parameters():
        parameter.requires_grad_(not (encoder_stays and name.startswith(("encoder.", "quant_conv."))))
    model = Reconstruct(begun, config.kl_weight, config.lpips_weight)
    device = device_of_run()
    model.to(device)
    lpips = load_lpips(levels=3).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    steps = config.autoencoder_images // config.autoencoder_batch

    def loss(prepared: nn.Module, step: int, share: Share) -> torch.Tensor:
        image = draw_crops(images, config.seed, step, config.autoencoder_batch, images.shape[1])[share.rows]
        return prepared(image.to(device), lpips, step, share)

    fit(
        model,
        loss,
        FitConfig(
            steps,
            config.autoencoder_batch,
            config.autoencoder_lr,
            decay=2 * steps // 3,
            ema=0.998,
            accumulate=config.accumulate,
            tracker=config.tracker,
            max_seconds=config.max_seconds,
            name="autoencoder",
        ),
        out / "autoencoder",
    )
    vae = model.autoencoder.eval()
    if not encoder_stays:
        sample = np.random.default_rng(config.seed).permutation(len(images))[:512]
        vae.register_to_config(scaling_factor=1 / encode_images(images[sample], vae).std().item())
    if rank() == 0:
        save_vae(vae, out / "autoencoder", torch.float16)
        (out / "autoencoder" / "vae").rename(out / "vae")  # whole or not at all
    meet()
    return load_vae(out)  # as everybody else will have it, rounded to float16


def train_unet(config: Config, unet: ElasticUNet, cache: Cache, folder: Path, watch: Watch) -> Fit:
    """Train the UNet on cached latents; see `fit`."""
    schedule, steps = sticker_schedule(), config.images // config.batch
    unet.for_training()

    def loss(prepared: nn.Module, step: int, share: Share) -> torch.Tensor:
        batch = draw_batch(
            cache,
            schedule,
            config.batch,
            config.seed,
            step,
            config.shares,
            config.snr_gamma,
            config.noise_shift,
        )
        return denoising_loss(prepared, batch[share.rows])

    return fit(
        unet,
        loss,
        FitConfig(
            steps,
            config.batch,
            config.lr,
            config.warmup,
            decay=round(config.decay * steps),
            ema=config.ema,
            accumulate=config.accumulate,
            gradient_checkpointing=config.gradient_checkpointing,
            tracker=config.tracker,
            max_seconds=config.max_seconds,
            name="UNet",
        ),
        folder,
        watch,
        config.observe_steps,
    )
