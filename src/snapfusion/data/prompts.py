"""The sentences that a picture is trained with, and the one it is tested with.

People write "fox", "a red fox, 3D render" and "3D sticker of a fox" and mean the same; a model learns that only from
captions that vary. Every function is a pure function of the row and a random generator that the caller seeds.
"""

import re

import numpy as np

from snapfusion.data.pairs import Pair
from snapfusion.data.styles import HANDS

STYLE_WORDS = {hand.style: hand.words for hand in HANDS}
STYLED = 0.8  # share of the captions that name the style
TAGGED = 0.25  # share that name something of the picture besides its label
COLOURED = 0.3  # share of the captions of a one-coloured picture that name its colour
COLOUR = re.compile(r"\b(red|orange|yellow|green|blue|light blue|purple|brown|black|white|grey|pink) ")

PLAIN = ("{bare}", "{a}", "{a}", "a picture of {a}", "{bare} sticker", "{bare} emoji")
IN_STYLE = (
    "{a}, {style}", "{a}, {style}", "{bare}, {style}", "{style} {bare}", "{bare} {style}", "{a_style} {bare}",
    "{a} in {style} style", "{style} sticker of {a}", "{a_style} sticker of {a}", "{bare} emoji, {style}",
    "{bare}, {style} sticker",
)  # fmt: skip


def prompt_of(pair: Pair) -> str:
    """The sentence that a picture is tested with: "a fox, 3D render"; its caption where it came with one."""
    if not pair.style:
        return pair.label
    return f"{with_article(pair.label)}, {STYLE_WORDS[pair.style][0]}"


def caption(pair: Pair, draw: np.random.Generator, colour: str | None = None) -> str:
    """One of the sentences for a picture. `colour` is said where it is given (a recoloured copy has to say it)."""
    label = pair.label
    if not pair.style:  # not ours: what it came with
        return label
    if colour is None and pair.colour is not None and draw.random() < COLOURED:
        colour = pair.colour
    if colour is not None:
        label = f"{colour} {COLOUR.sub('', label)}"
    bare = shorten(label, draw)
    styled = draw.random() < STYLED
    style = str(draw.choice(STYLE_WORDS[pair.style]))
    form = str(draw.choice(IN_STYLE if styled else PLAIN))
    sentence = form.format(bare=bare, a=with_article(bare), style=style, a_style=with_article(style))
    tags = [tag for tag in pair.tags if tag not in sentence]
    if tags and draw.random() < TAGGED:
        chosen = draw.choice(tags, size=min(len(tags), int(draw.integers(1, 4))), replace=False)
        sentence = f"{sentence}, {', '.join(chosen)}"
    return sentence


def shorten(label: str, draw: np.random.Generator) -> str:
    """A label as people say it: lower case half of the time, "cat face" sometimes just "cat"."""
    if draw.random() < 0.5:
        label = label.lower()
    if label.endswith(" face") and label.count(" ") == 1 and draw.random() < 0.3:
        label = label.removesuffix(" face")
    return label


def with_article(words: str) -> str:
    """With "a" or "an", where English has one: not for plurals, and not for what starts with a number."""
    last = words.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    if plural or (words[0].isdigit() and not words.startswith("3D")):
        return words
    return (
        f"an {words}" if words[0].lower() in "aeiou" and not words.lower().startswith(("uni", "eu")) else f"a {words}"
    )
