"""Pictures as PNG bytes that say what they are: settings for people and programs, and that a machine made them.

`parameters` is the text that AUTOMATIC1111's web UI writes and most tools read; `snapfusion` holds the same as JSON.
The mark "made by AI" stands in plain words and, for programs, as IPTC's digital source type in an XMP packet (IPTC
Photo Metadata Standard 2023.1). There is no date in the file: the same settings give the same bytes.
"""

import io
import json
from dataclasses import asdict

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from snapfusion.bundle import Bundle
from snapfusion.settings import Settings

SAMPLERS = {"ddim": "DDIM", "dpm++": "DPM++ 2M", "euler": "Euler"}  # as AUTOMATIC1111 calls them
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def encode_png(image: Image.Image, bundle: Bundle, settings: Settings, software: str) -> bytes:
    """`image` as a PNG file with everything that it takes to draw it again. `software` is a name and version."""
    texts = PngInfo()
    texts.add_text("parameters", parameters(image, bundle, settings, software))
    texts.add_text("snapfusion", json.dumps(_record(image, bundle, settings, software)))
    texts.add_text("Software", software)
    texts.add_text("Comment", "Made by AI")
    texts.add_itxt("XML:com.adobe.xmp", XMP)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=texts)
    return file.getvalue()


def parameters(image: Image.Image, bundle: Bundle, settings: Settings, software: str) -> str:
    """The settings as AUTOMATIC1111's web UI words them."""
    fields = {
        "Steps": settings.steps,
        "Sampler": SAMPLERS[settings.scheduler],
        "CFG scale": f"{settings.guidance:g}",
        "Seed": settings.seed,
        "Size": f"{image.width}x{image.height}",
        "Model hash": bundle.hash[:10],
        "Model": bundle.manifest.name,
        "Version": software,
    }
    if settings.guidance_stop != 1:
        fields["Guidance stop"] = f"{settings.guidance_stop:g}"
    negative = [f"Negative prompt: {settings.negative}"] if settings.negative else []
    return "\n".join([settings.prompt, *negative, ", ".join(f"{name}: {value}" for name, value in fields.items())])


def _record(image: Image.Image, bundle: Bundle, settings: Settings, software: str) -> dict[str, object]:
    size = {"width": image.width, "height": image.height}
    return {**asdict(settings), **size, "bundle": bundle.hash, "software": software, "made_by_ai": True}
