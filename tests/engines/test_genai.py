"""OpenVINO's own pipeline draws a bundle of Stable Diffusion's shape as it stands, and draws what we draw."""

from pathlib import Path

import numpy as np
import openvino
import openvino_genai
import openvino_tokenizers  # noqa: F401 (brings the operations that tokenizers are made of)
import pytest

from snapfusion.bundle import Bundle, read_bundle
from snapfusion.generate import open_bundle
from snapfusion.stages.export import stage
from snapfusion.tokens import tokenize

STEPS, GUIDANCE, SEED = 3, 3.0, 5


@pytest.fixture(scope="module")
def bundle(tiny_sd_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = stage.Config(precision="fp16", genai=True, steps=STEPS, guidance=GUIDANCE, prompts=("a red fox",))
    return read_bundle(stage.run(config, tiny_sd_checkpoint, tmp_path_factory.mktemp("genai") / "bundle").bundle)


@pytest.mark.parametrize("prompt", ["", "a red fox", "Two CATS, cafe\u0301 & 3d", "fox " * 40])
def test_its_tokenizer_gives_our_tokens(bundle: Bundle, prompt: str) -> None:
    tokenizer = openvino.compile_model(bundle.folder / "tokenizer" / "openvino_tokenizer.xml", "CPU")
    theirs = tokenizer([prompt])["input_ids"][0].tolist()
    ours = tokenize(bundle.tokenizer, [prompt], bundle.length)[0][0].tolist()
    end = bundle.tokenizer.padding["pad_id"]  # pyright: ignore[reportOptionalSubscript]
    assert (theirs + [end] * bundle.length)[: bundle.length] == ours


def test_its_pipeline_draws_our_picture(bundle: Bundle) -> None:
    pipeline = openvino_genai.Text2ImagePipeline(bundle.folder, "CPU")
    theirs = pipeline.generate(
        "a red fox",
        width=64,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=openvino_genai.TorchGenerator(SEED),
    ).data[0]
    (ours,) = open_bundle(bundle.folder)("a red fox", seed=SEED)
    assert np.ptp(theirs) > 20  # not a blank
    error = np.mean((np.asarray(ours).astype(float) - theirs) ** 2)
    assert 10 * np.log10(255**2 / error) >= 30
