"""A picture's file says how it was made, to people, to tools, and that it was made by AI."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapfusion.bundle import Bundle, read_bundle
from snapfusion.png import encode_png, parameters
from snapfusion.settings import Settings

SETTINGS = Settings("a red fox, 3D render", "blurry", 7, 8, 2.5, "dpm++")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return read_bundle(tiny_bundle)


def texts(data: bytes) -> dict[str, str]:
    image = Image.open(BytesIO(data))
    image.load()
    return {str(name): str(value) for name, value in image.info.items()}


def test_the_pixels_are_kept(bundle: Bundle) -> None:
    data = encode_png(PICTURE, bundle, SETTINGS, "snapfusion 1")
    assert np.array_equal(np.asarray(Image.open(BytesIO(data))), np.asarray(PICTURE))


def test_parameters_are_worded_as_other_tools_read_them(bundle: Bundle) -> None:
    told = texts(encode_png(PICTURE, bundle, SETTINGS, "snapfusion 1"))["parameters"]
    assert told == (
        "a red fox, 3D render\n"
        "Negative prompt: blurry\n"
        "Steps: 8, Sampler: DPM++ 2M, CFG scale: 2.5, Seed: 7, Size: 6x4, "
        f"Model hash: {bundle.hash[:10]}, Model: tiny, Version: snapfusion 1"
    )


def test_where_guidance_stops_is_told_if_it_does(bundle: Bundle) -> None:
    stopped = replace(SETTINGS, guidance_stop=0.5)
    assert "Version: snapfusion 1, Guidance stop: 0.5" in parameters(PICTURE, bundle, stopped, "snapfusion 1")


def test_the_settings_can_be_read_back(bundle: Bundle) -> None:
    record = json.loads(texts(encode_png(PICTURE, bundle, SETTINGS, "snapfusion 1"))["snapfusion"])
    assert record == {
        "prompt": "a red fox, 3D render",
        "negative": "blurry",
        "seed": 7,
        "steps": 8,
        "guidance": 2.5,
        "scheduler": "dpm++",
        "guidance_stop": 1.0,
        "width": 6,
        "height": 4,
        "bundle": bundle.hash,
        "software": "snapfusion 1",
        "made_by_ai": True,
    }


def test_it_is_marked_as_made_by_ai(bundle: Bundle) -> None:
    info = texts(encode_png(PICTURE, bundle, SETTINGS, "snapfusion 1"))
    assert info["Comment"] == "Made by AI"
    assert info["Software"] == "snapfusion 1"
    # The value that IPTC asks for, in its own property of its own namespace, as an XML parser finds it.
    from xml.etree import ElementTree

    (packet,) = (value for name, value in info.items() if name.startswith("XML:"))
    (description,) = ElementTree.fromstring(packet).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    kind = description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert kind == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_a_prompt_of_any_script_is_kept(bundle: Bundle) -> None:
    settings = Settings("红狐狸 🦊", "", 0, 8, 2.5, "ddim")
    info = texts(encode_png(PICTURE, bundle, settings, "snapfusion 1"))
    assert info["parameters"].startswith("红狐狸 🦊\nSteps: 8, Sampler: DDIM")
    assert json.loads(info["snapfusion"])["prompt"] == "红狐狸 🦊"


def test_the_same_picture_is_the_same_bytes(bundle: Bundle) -> None:
    assert encode_png(PICTURE, bundle, SETTINGS, "x") == encode_png(PICTURE.copy(), bundle, SETTINGS, "x")
