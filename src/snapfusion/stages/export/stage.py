"""A checkpoint to a bundle: convert the three networks, hold them against torch, seal what passes."""

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel

from snapfusion import __version__
from snapfusion.bundle import MANIFEST, Defaults, Manifest, Networks, bundle_in, read_bundle, seal_bundle
from snapfusion.checkpoint import Checkpoint, hash_of, load_checkpoint, load_schedule, load_vae
from snapfusion.generate import open_networks
from snapfusion.json_file import read_json, write_json
from snapfusion.runtimes import openvino
from snapfusion.runtimes.choice import (
    PARTS,
    RUNTIMES,
    Part,
    Runtime,
    draws_here,
    is_installed,
    load,
    missing,
)
from snapfusion.runtimes.quantisation import Calibration, saturates
from snapfusion.runtimes.torch import Network, export_part
from snapfusion.sampling import Sampling
from snapfusion.settings import settings_for
from snapfusion.stages.export.calibrate import calibrations, record
from snapfusion.stages.export.config import Config, Result
from snapfusion.stages.export.footprint import footprints, size_of
from snapfusion.stages.export.modules import modules
from snapfusion.stages.export.parity import check, measure
from snapfusion.stages.export.shift import search
from snapfusion.tokens import tokenize, write_tokenizer

log = logging.getLogger(__name__)

STEPS = 50  # of a checkpoint that was distilled for none
LARGEST_ONNX = 2**31  # bytes of weights in a file: protobuf's limit, which NNCF's copy of the graph runs into
OUTPUTS = {"text_encoder": "last_hidden_state", "unet": "out_sample", "vae_decoder": "sample"}


def run(config: Config, checkpoint: Path, out: Path, decoder: Path | None = None) -> Result:
    """Pack the checkpoint in folder `checkpoint` into a bundle in folder `out`.

    `decoder` is a checkpoint whose image decoder is packed in place of this one's. A bundle that was made of the same
    is left as it is. Raises `ValueError` where `out` holds anything else, or where the bundle is further from torch
    than `parity` allows: then nothing is written.
    """
    stored: dict[Runtime, dict[str, str]] = {runtime: _precisions(config, runtime) for runtime in config.runtime}
    decoder = decoder or checkpoint
    hashes = {"checkpoint": hash_of(checkpoint)} | ({"decoder": hash_of(decoder)} if decoder != checkpoint else {})
    source = json.loads(json.dumps({**hashes, "export": asdict(config)}))
    if out.exists():
        if not (out / MANIFEST).is_file() or read_json(out / MANIFEST).get("source") != source:
            raise ValueError(f"got --out {out}, which holds something else; remove it or name a new folder")
        return Result(out, read_bundle(out).manifest.figures)
    steps = config.steps or load_schedule(checkpoint).distilled_steps or STEPS
    manifest = Manifest(
        name=config.name or _name_of(checkpoint.resolve()),
        snapfusion=__version__,
        defaults=Defaults(steps, config.guidance, config.scheduler, config.guidance_stop),
        runtimes=stored,
        licences=_licences(checkpoint),
        source=source,
    )
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    try:
        figures = _pack(config, manifest, checkpoint, decoder, work)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Result(out, figures)


def _pack(config: Config, manifest: Manifest, checkpoint: Path, decoder: Path, out: Path) -> dict[str, Any]:
    """Write the bundle, measure it, seal it; returns the figures."""
    loaded = load_checkpoint(checkpoint)
    if config.genai and not (isinstance(loaded.text_encoder.model, CLIPTextModel) and "openvino" in config.runtime):
        raise ValueError("got --genai, expected CLIP as text encoder and --runtime openvino: it is OpenVINO's pipeline")
    if decoder != checkpoint:
        loaded = replace(loaded, vae=load_vae(decoder))
    configs = {"text_encoder": checkpoint / "text_encoder", "unet": checkpoint / "unet", "vae_decoder": decoder / "vae"}
    rounds = any("w8a8" in stored.values() for stored in manifest.runtimes.values())
    if rounds:
        _refuse_too_large(loaded, manifest)
    loaded, figures = _placed(config, manifest, loaded)
    _frame(loaded, configs, out)
    framed = bundle_in(out, manifest)
    for prompt in config.prompts:
        settings_for(framed, prompt, seed=0)  # refuses now what it could not draw in the end
    shutil.copyfile(checkpoint / "model_index.json", out / "model_index.json")
    right = Networks(**{part: Network(module) for part, module in modules(loaded).items()})

    calibration: dict[Part, Calibration] = {}
    if rounds:
        half_range = saturates() if config.w8a8_half_range is None else config.w8a8_half_range
        figures["w8a8_half_range"] = half_range
        log.info("drawing what w8a8 is calibrated by")
        calibration = calibrations(record(framed, right), config.w8a8_db, half_range)
    for runtime in manifest.runtimes:
        for part in PARTS:
            log.info("%s: %s, %s", runtime, part, manifest.runtimes[runtime][part])
            _convert(config, runtime, part, loaded, calibration.get(part), out)
    if config.genai:
        openvino.export_tokenizer(out / "tokenizer")
    seal_bundle(out, manifest)  # to be opened and drawn with, as anybody would

    figures["parity"] = {runtime: _measure(config, out, runtime, right) for runtime in manifest.runtimes}
    seal_bundle(out, replace(manifest, figures=figures))
    return figures


def _refuse_too_large(loaded: Checkpoint, manifest: Manifest) -> None:
    """Raise `ValueError` where a network is to be quantised as ONNX that does not fit into one file of that format."""
    size = 4 * sum(weight.numel() for weight in loaded.unet.parameters())
    if manifest.runtimes.get("onnx", {}).get("unet") == "w8a8" and size >= LARGEST_ONNX:
        raise ValueError(
            f"got --precision w8a8 for onnx and a UNet of {size / 1e9:.1f} GB, expected at most "
            f"{LARGEST_ONNX / 1e9:.1f}, which ONNX holds in one file; use --runtime openvino, or --unet fp32"
        )


def _placed(config: Config, manifest: Manifest, loaded: Checkpoint) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint with the steps where they were asked to be, and what was found where they were searched for."""
    if config.timestep_shift is None:
        return loaded, {}
    if config.timestep_shift != "search":
        return replace(loaded, schedule=loaded.schedule.placed(config.timestep_shift)), {}
    defaults = manifest.defaults  # all steps guided: where guidance stops is a share of them, wherever they are
    found = search(loaded, config.prompts, Sampling(defaults.steps, defaults.guidance, defaults.scheduler))
    return replace(loaded, schedule=loaded.schedule.placed(found.nearest)), {"timestep_shift": found.figures()}


def _measure(config: Config, out: Path, runtime: Runtime, right: Networks) -> dict[str, Any]:
    """How far one runtime's networks are from torch, and what they take. Raises `ValueError` where it is too far."""
    if not draws_here(runtime):
        return {"not_run": missing(runtime), **{part: {"bytes": size_of(out / part, runtime, part)} for part in PARTS}}
    log.info("%s: held against torch, %d pictures", runtime, len(config.prompts))
    bundle = read_bundle(out, runtime)
    pictures = [one for prompt in config.prompts for one in settings_for(bundle, prompt, seed=0)]
    parity = measure(bundle, open_networks(bundle), right, pictures)
    check(parity, bundle.manifest.runtimes[runtime])
    takes = footprints(out, runtime)
    parts = {part: {**parity[part], **takes[part]} for part in PARTS}
    return {"against": "torch float32", "computed_in": load(runtime).precision(), **parity, **parts}


def _precisions(config: Config, runtime: Runtime) -> dict[str, str]:
    """How each part's weights are stored for a runtime. Raises `ValueError` where it cannot be had."""
    if not is_installed(runtime):
        raise ValueError(missing(runtime))
    known = RUNTIMES[runtime].precisions
    whole = config.precision or known[0]
    usual = {"text_encoder": known[0] if whole == "w8a8" else whole, "unet": whole, "vae_decoder": whole}
    stored = {part: getattr(config, part) or usual[part] for part in PARTS}
    for part, precision in stored.items():
        fit = known + RUNTIMES[runtime].words if part == "text_encoder" else known
        if precision not in fit:
            raise ValueError(f"got {precision} for the {part} in {runtime}, expected one of {', '.join(fit)}")
    return stored


def _frame(loaded: Checkpoint, configs: Mapping[str, Path], out: Path) -> None:
    """Write all but the networks; `configs` are the folders that have their config.json."""
    for part, folder in configs.items():
        fields = read_json(folder / "config.json")
        fields.pop("_name_or_path", None)  # where somebody once loaded it from
        if part == "vae_decoder":  # Stable Diffusion v1's config is older than the field
            fields.setdefault("scaling_factor", loaded.vae.config["scaling_factor"])
        write_json(out / part / "config.json", fields)
    write_tokenizer(loaded.tokenizer, loaded.length, out / "tokenizer")
    write_json(out / "scheduler" / "scheduler_config.json", loaded.schedule.to_config())


def _convert(
    config: Config, runtime: Runtime, part: Part, loaded: Checkpoint, calibration: Calibration | None, out: Path
) -> None:
    """Write one network for one runtime."""
    precision = _precisions(config, runtime)[part]
    halved = {"halves": True} if runtime == "coreml" and part == "unet" and config.halves else {}
    if runtime == "torch":
        export_part(part, loaded, out, precision)
    else:
        network, example = modules(loaded)[part], _examples(loaded)[part]
        # Tracing takes sizes for fixed, which here they are; gradients would take four times the memory.
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            load(runtime).export(network, example, OUTPUTS[part], out / part, precision, calibration, **halved)


def _examples(checkpoint: Checkpoint) -> dict[str, dict[str, torch.Tensor]]:
    """Inputs for each network; two rows, so that no batch of one is taken for a fixed size."""
    unet: Any = checkpoint.unet.config
    tokens, _ = tokenize(checkpoint.tokenizer, ["", "a red fox"], checkpoint.length)
    latent = torch.zeros(2, unet.in_channels, unet.sample_size, unet.sample_size)
    embedding = torch.zeros(2, checkpoint.length, checkpoint.text_encoder.width)
    return {
        "text_encoder": {"input_ids": torch.from_numpy(tokens)},
        "unet": {"sample": latent, "timestep": torch.tensor([1]), "encoder_hidden_states": embedding},
        "vae_decoder": {"latent_sample": latent},
    }


def _name_of(checkpoint: Path) -> str:
    """The name of its folder, or of the stage whose "checkpoint" it is."""
    return checkpoint.parent.name if checkpoint.name == "checkpoint" else checkpoint.name


def _licences(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint says of its parts' and its data's licences, if it does."""
    file = checkpoint / "licences.json"
    return read_json(file) if file.exists() else {}
