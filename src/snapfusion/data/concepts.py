"""What there is to draw: concepts with their labels and tags, and which of them are one thing in two poses.

Labels and tags come from emojibase, more tags from the Unicode CLDR. A concept's *base* is the key of every split: "man
running", "woman running" and "person running: facing right" are one base, as are the twelve clocks and the eight moons,
so that what is held out has no near twin among what is trained on.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from snapfusion.data.packages import CLDR, EMOJIBASE, fetch, read

# Emojibase's groups and the subgroups that a person's prompt would not ask for, with what we tell of each.
DROPPED_GROUPS = {2: "skin tones and hair", 9: "flags"}
DROPPED_SUBGROUPS = {
    "transport-sign": "signs", "warning": "signs", "arrow": "arrows", "religion": "signs", "zodiac": "signs",
    "av-symbol": "buttons", "gender": "signs", "math": "signs", "punctuation": "signs", "currency": "signs",
    "other-symbol": "signs", "keycap": "letters and digits", "alphanum": "letters and digits",
}  # fmt: skip
# Of the kept ones, what two cores should not spend their time on: signs on paper, hands, people, clocks, charts.
CORE_GROUPS = (0, 3, 4, 5, 6, 7)
NOT_CORE_SUBGROUPS = (
    "emotion", "face-hand", "place-map", "hotel", "time", "award-medal", "sound", "book-paper", "money", "mail",
    "office", "lock", "phone", "writing", "medical",
)  # fmt: skip
NOT_CORE_WORDS = re.compile(
    r"\b(moon|person|man|woman|men|women|people|suit|mahjong|joker|banknote|chart|speaker|cards?|tickets?|label|"
    r"monkey with|see-no|hear-no|speak-no|thermometer|station|elevator|cricket game|level slider|control knobs|"
    r"musical)\b"
)

SKIN, SIGNS = (
    ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"),
    ("2640", "2642", "27a1", "2b1b", "1f9b0", "1f9b1", "1f9b2", "1f9b3"),
)
PERSON = {
    "1f468": "1f9d1", "1f469": "1f9d1", "1f471": "1f9d1", "1f9d4": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2",
    "1f474": "1f9d3", "1f475": "1f9d3", "1f934": "1fac5", "1f478": "1fac5", "1f936": "1f385", "1f57a": "1f483",
}  # fmt: skip
COLOURS = "red|orange|yellow|green|blue|light blue|purple|brown|black|white|grey|pink"


@dataclass(frozen=True)
class Concept:
    """One thing to draw. `code` is its code points without variation selectors; `base` is what the splits hash."""

    code: str
    label: str
    tags: tuple[str, ...]
    group: int
    subgroup: str
    base: str

    @property
    def core(self) -> bool:
        """Whether the small set has it."""
        return (
            self.group in CORE_GROUPS
            and self.subgroup not in NOT_CORE_SUBGROUPS
            and not NOT_CORE_WORDS.search(self.label.lower())
        )


def load_concepts(cache: Path) -> tuple[list[Concept], Counter[str]]:
    """Every concept we keep, in emojibase's order, and how many were dropped for which reason."""
    files = read(fetch(EMOJIBASE, cache), ("package/en/data.json", "package/meta/groups.json"))
    entries = json.loads(files["en/data.json"])
    subgroups = json.loads(files["meta/groups.json"])["subgroups"]
    keywords = cldr_keywords(cache)
    kept: list[Concept] = []
    dropped: Counter[str] = Counter()
    for entry in sorted(entries, key=lambda entry: entry.get("order", 0)):
        dropped["skin tones and hair"] += len(entry.get("skins", ()))
        reason = why_dropped(entry, subgroups)
        if reason:
            dropped[reason] += 1
            continue
        code = entry["hexcode"].lower().replace("-fe0f", "")
        subgroup = subgroups[str(entry["subgroup"])]
        label = entry["label"].replace("’", "'")
        tags = tuple(dict.fromkeys([*entry.get("tags", ()), *keywords.get(entry["emoji"].replace("\ufe0f", ""), ())]))
        kept.append(Concept(code, label, tags, entry["group"], subgroup, base_of(code, label, subgroup)))
    return kept, dropped


def why_dropped(entry: dict, subgroups: dict[str, str]) -> str | None:
    """The reason for which an emojibase entry is not a sticker, or None."""
    group = entry.get("group")
    if group is None:
        return "letters and digits"
    return DROPPED_GROUPS.get(group) or DROPPED_SUBGROUPS.get(subgroups[str(entry["subgroup"])])


def cldr_keywords(cache: Path) -> dict[str, list[str]]:
    """Unicode's English keywords: emoji without variation selectors -> words."""
    files = read(fetch(CLDR, cache), ("annotations/en/annotations.json",))
    table = json.loads(files["annotations/en/annotations.json"])["annotations"]["annotations"]
    return {emoji.replace("\ufe0f", ""): row.get("default", []) for emoji, row in table.items()}


def base_of(code: str, label: str, subgroup: str) -> str:
    """The key under which variants of one thing meet: gender, skin, hair, direction, hour, phase and colour removed."""
    label = label.lower()
    if subgroup == "family":
        return "family"
    if "o'clock" in label or label.endswith("-thirty"):
        return "clock"
    if "moon" in label and subgroup == "sky-weather":
        return "moon"
    if label.startswith("globe showing"):
        return "globe"
    if subgroup == "heart":
        return "heart" if re.fullmatch(rf"({COLOURS}) heart", label) else label
    if subgroup == "geometric":
        return re.sub(rf"\b({COLOURS}|large|medium|small|medium-small)\b ?", "", label).strip()
    if re.fullmatch(rf"(closed|{COLOURS}) book", label):
        return "book"
    if label.endswith(("place medal", "sports medal")):
        return "medal"
    if "mailbox with" in label:
        return "mailbox"
    if subgroup.startswith("hand") or "magnifying glass" in label or "speech" in label:
        return re.sub(
            r"\b(left|right|up|down|leftwards|rightwards|left-facing|right-facing|tilted)\b ?", "", label
        ).strip()
    parts = [part for part in code.split("-") if part not in (*SKIN, *SIGNS)]
    while parts and parts[-1] == "200d":
        parts.pop()
    joined = "-".join(PERSON.get(part, part) for part in parts)
    return re.sub(r"(-200d)+", "-200d", joined)
