"""Pages that need nothing but themselves: templates filled in, pictures inside them."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,  # prompts are anybody's
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(page: str, **values: Any) -> str:
    """A template of `templates/`, filled in."""
    return PAGES.get_template(page).render(values)


def data_uri(file: Path, largest: int) -> str:
    """A picture as WebP inside a URI, its longer side at most `largest` pixels."""
    image = Image.open(file).convert("RGB")
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
