"""Prompts to tokens: ids worked out by hand and by transformers' own tokenizers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import BertTokenizer, CLIPTokenizer

from snapfusion.tokens import CLIP_END, read_tokenizer, set_pad_token, tokenize, write_tokenizer
from tiny_models import byte_pair_tokenizer, word_piece_tokenizer

PROMPTS = [
    "",
    "a red fox",
    "A RED  fox,\n\ta cat's 3D render!",
    "Étoile née à Zürich, e\u0301",
    "红狐 🦊 рыжая лиса ﬁ ½",
    "<|endoftext|> red <|startoftext|>fox [SEP] [PAD]",
    "it's we'll they'd 1234 -- (red)   ",
    "fox " * 40,
]


@pytest.fixture
def clip() -> Tokenizer:
    return byte_pair_tokenizer()


@pytest.fixture
def bert() -> Tokenizer:
    return word_piece_tokenizer()


def test_bert_tokens_are_wrapped_and_padded(bert: Tokenizer) -> None:
    # The vocabulary begins [PAD] [UNK] [CLS] [SEP] a red blue fox.
    tokens, cut = tokenize(bert, ["a red fox", ""], 8)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [[2, 4, 5, 7, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]]
    assert cut == ["", ""]


def test_a_long_prompt_loses_its_end_and_keeps_the_closing_token(bert: Tokenizer) -> None:
    tokens, cut = tokenize(bert, ["a red fox", "a red fox of", "a red FOX, of the cat"], 5)
    assert tokens.tolist() == [[2, 4, 5, 7, 3]] * 3
    assert cut == ["", "of", ", of the cat"]


def test_clip_pads_with_its_end_token(clip: Tokenizer) -> None:
    start, red, fox, end = (clip.token_to_id(token) for token in ("<|startoftext|>", "red</w>", "fox</w>", CLIP_END))
    tokens, cut = tokenize(clip, ["red fox", "red fox red  Fox!"], 5)
    assert tokens.tolist() == [[start, red, fox, end, end], [start, red, fox, red, end]]
    assert cut == ["", "Fox!"]


def reference_clip(tokenizer: Tokenizer, folder: Path) -> CLIPTokenizer:
    tokenizer.model.save(str(folder))
    return CLIPTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("length", [5, 16, 77])
def test_clip_is_what_transformers_makes(clip: Tokenizer, tmp_path: Path, length: int) -> None:
    expected = reference_clip(clip, tmp_path)(PROMPTS, padding="max_length", truncation=True, max_length=length)
    assert tokenize(clip, PROMPTS, length)[0].tolist() == expected["input_ids"]


def test_clip_is_what_transformers_makes_of_any_text(clip: Tokenizer, tmp_path: Path) -> None:
    reference = reference_clip(clip, tmp_path)

    @settings(max_examples=100, deadline=None)
    @given(st.text())
    def same(prompt: str) -> None:
        assert clip.encode(prompt).ids == reference(prompt)["input_ids"]

    same()


def test_bert_is_what_transformers_makes(bert: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer(bert, 16, tmp_path)
    reference = BertTokenizer.from_pretrained(tmp_path)
    expected = reference(PROMPTS, padding="max_length", truncation=True, max_length=16)
    assert tokenize(bert, PROMPTS, 16)[0].tolist() == expected["input_ids"]


@pytest.mark.parametrize("keep", ["tokenizer.json", "vocab.json merges.txt"])
def test_a_clip_folder_reads_back_from_either_form(clip: Tokenizer, tmp_path: Path, keep: str) -> None:
    write_tokenizer(clip, 16, tmp_path)
    for file in tmp_path.iterdir():
        if file.name not in (*keep.split(), "tokenizer_config.json"):
            file.unlink()
    tokenizer, length = read_tokenizer(tmp_path)
    assert length == 16
    assert tokenize(tokenizer, PROMPTS, 16)[0].tolist() == tokenize(clip, PROMPTS, 16)[0].tolist()


def test_length_and_padding_fixed_in_the_file_do_not_count(bert: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer(bert, 16, tmp_path)
    bert.enable_truncation(3)
    bert.enable_padding(length=128, pad_token="[PAD]", pad_id=0)
    bert.save(str(tmp_path / "tokenizer.json"))
    tokens, cut = tokenize(read_tokenizer(tmp_path)[0], ["a red fox"], 8)
    assert tokens.tolist() == [[2, 4, 5, 7, 3, 0, 0, 0]]
    assert cut == [""]


@pytest.mark.parametrize("pad_token", ["!", {"content": "!", "lstrip": False}])
def test_the_pad_token_of_stable_diffusion_2(clip: Tokenizer, tmp_path: Path, pad_token: object) -> None:
    write_tokenizer(clip, 16, tmp_path)
    config = {"model_max_length": 16, "pad_token": pad_token}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, _ = read_tokenizer(tmp_path)
    assert tokenize(tokenizer, ["red"], 5)[0][0, 3:].tolist() == [clip.token_to_id("!")] * 2


BROKEN = {
    "no tokenizer": ({"tokenizer.json": None, "vocab.json": None}, "got no tokenizer, expected tokenizer.json"),
    "no config": ({"tokenizer_config.json": None}, "tokenizer_config.json: missing"),
    "no limit": ({"tokenizer_config.json": '{"model_max_length": 1e30}'}, "got model_max_length 1e+30, expected 3 to"),
    "too short": ({"tokenizer_config.json": '{"model_max_length": 2}'}, "got model_max_length 2, expected 3 to"),
    "strange pad token": (
        {"tokenizer_config.json": '{"model_max_length": 16, "pad_token": "[NO]"}'},
        "got pad token '[NO]', expected one of the tokenizer's 520 tokens",
    ),
    "cut off": ({"tokenizer.json": '{"version": "1.0", '}, "tokenizer.json: expected a tokenizer as the tokenizers"),
    "other merges": (
        {"tokenizer.json": None, "merges.txt": "#version: 0.2\nzz yy\n"},
        "got merges.txt of another vocabulary",
    ),
    "no merges": ({"tokenizer.json": None, "merges.txt": "one two three\n"}, "expected two tokens on every line"),
    "no CLIP": ({"tokenizer.json": None, "vocab.json": '{"a": 0}'}, "got no token <|startoftext|>"),
    "a list": ({"tokenizer.json": None, "vocab.json": '["a"]'}, "vocab.json: got list, expected a JSON object"),
    "not text": ({"tokenizer.json": None, "vocab.json": "{"}, "vocab.json: expected JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_refused_by_name(clip: Tokenizer, tmp_path: Path, case: str) -> None:
    write_tokenizer(clip, 16, tmp_path)
    changes, message = BROKEN[case]
    for name, text in changes.items():
        (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="expected") as error:
        read_tokenizer(tmp_path)
    assert message in str(error.value)


def test_a_pad_token_must_be_known(bert: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"got pad token '<pad>', expected one of"):
        set_pad_token(bert, "<pad>")


def test_the_special_tokens_map_says_what_pads(tmp_path: Path, clip: Tokenizer) -> None:
    """Stable Diffusion v2's folders pad with "!" by this older file, against tokenizer_config.json."""
    write_tokenizer(clip, 9, tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    tokenizer, length = read_tokenizer(tmp_path)
    assert tokenize(tokenizer, [""], length)[0].tolist() == [[518, 519, *[0] * 7]]
    assert CLIPTokenizer.from_pretrained(tmp_path).pad_token == "!"
