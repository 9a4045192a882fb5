"""CLIP score: the cosine between what CLIP makes of a picture and of its prompt (Hessel et al. 2021, arXiv:2104.08718).

Convention: the plain cosine, averaged over pictures, as in the paper's Table 2 and Fig. 4, where Stable Diffusion is at
about 0.30 by ViT-g/14. torchmetrics prints it times 100; Hessel et al. have it times 2.5 and cut off at zero. Figures
of two CLIPs cannot be compared, so the name goes with the figure.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from snapfusion.stage_folder import hash_of_file

NAMED = {
    "vit-g-14": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",  # the paper's (section 5)
    "vit-l-14": "openai/clip-vit-large-patch14",
}
BATCH = 16


@dataclass(frozen=True)
class Clip:
    """A CLIP of transformers with its own tokenizer and its own way to bring a picture to size."""

    name: str
    """With the version, for beside a figure."""
    model: CLIPModel
    tokenizer: Any
    preprocess: CLIPImageProcessorPil

    @torch.inference_mode()
    def cosines(self, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]) -> NDArray[np.float32]:
        """The cosine of each of N pictures `[H, W, 3]` to its own prompt, `[N]`; a long prompt loses its end."""
        assert len(images) == len(prompts), (len(images), len(prompts))
        network: Any = self.model
        found = [np.empty(0, np.float32)]
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            pixels = self.preprocess([Image.fromarray(image) for image in images[part]], return_tensors="pt")
            words = self.tokenizer(list(prompts[part]), padding=True, truncation=True, return_tensors="pt")
            seen = network.get_image_features(pixels["pixel_values"].to(self.model.device)).pooler_output
            read = network.get_text_features(**words.to(self.model.device)).pooler_output
            found.append(cosine_similarity(seen.float(), read.float()).cpu().numpy())
        return np.concatenate(found)


def load_clip(source: str, device: str = "cpu") -> Clip:
    """Any CLIP in transformers' layout, float32.

    Args:
        source: A folder, a name of `NAMED`, or a name on the hub, from where it is fetched once.
    Raises:
        ValueError: There is no such CLIP, or none whose weights are safetensors.
    """
    name = NAMED.get(source, source)
    try:
        model: Any = CLIPModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
        preprocess = CLIPImageProcessorPil.from_pretrained(name)
    except OSError as error:  # whatever transformers cannot find, reach or read
        raise ValueError(
            f"got CLIP {source}, which cannot be opened ({str(error).strip().splitlines()[0]}); expected a folder with "
            "config.json, model.safetensors, a tokenizer and preprocessor_config.json, a name on the hub, or "
            f"{' or '.join(NAMED)}"
        ) from error
    tokenizer.model_max_length = model.config.text_config.max_position_embeddings
    return Clip(_versioned(name, model.config), model.to(device).eval(), tokenizer, preprocess)


def _versioned(name: str, config: Any) -> str:
    """A name with the hub's commit, or a folder's with the SHA-256 of its weights."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{str(config._commit_hash)[:12]}"
    hashes = " ".join(hash_of_file(file) for file in sorted(folder.glob("*.safetensors")))
    return f"{folder.resolve().name}@{hashlib.sha256(hashes.encode()).hexdigest()[:12]}"
