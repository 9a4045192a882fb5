"""Prompts to tokens, the same way in training, in a checkpoint and in a bundle: no torch, no transformers.

A `tokenizers.Tokenizer` from `read_tokenizer` carries its pad token; `tokenize` alone cuts and pads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from snapfusion.json_file import read_json, write_json

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
LONGEST = 4096  # files that mean "no limit" say 1e30; no text encoder of an image model reads more tokens than this


def tokenize(tokenizer: Tokenizer, prompts: Sequence[str], length: int) -> tuple[NDArray[np.int64], list[str]]:
    """Tokens `[B, length]`, special tokens and padding included, and for every prompt the text that did not fit or "".

    A long prompt loses its end, never its closing special token, as in Stable Diffusion.
    """
    room = length - tokenizer.num_special_tokens_to_add(is_pair=False)
    padding = tokenizer.padding
    assert room >= 0, f"length {length} leaves no room for the special tokens"
    assert padding is not None, "the tokenizer names no pad token: load it with read_tokenizer"
    tokens = np.empty((len(prompts), length), dtype=np.int64)
    cut: list[str] = []
    for row, prompt in enumerate(prompts):
        encoding = tokenizer.encode(prompt, add_special_tokens=False)
        cut.append(prompt[encoding.offsets[room][0] :] if len(encoding) > room else "")
        encoding.truncate(room)
        encoding = tokenizer.post_process(encoding)
        encoding.pad(length, pad_id=padding["pad_id"])
        tokens[row] = encoding.ids
    return tokens, cut


def read_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """The tokenizer of a `tokenizer/` folder and the number of tokens its text encoder takes (`model_max_length`).

    Reads `tokenizer.json`, or CLIP's older pair `vocab.json` + `merges.txt`. Raises `ValueError` for anything else.
    """
    config = read_json(folder / "tokenizer_config.json")
    if (folder / "special_tokens_map.json").is_file() and "added_tokens_decoder" not in config:
        # What transformers goes by where both are there: Stable Diffusion v2 pads with "!", and says so here alone.
        config |= read_json(folder / "special_tokens_map.json")
    if (folder / "tokenizer.json").is_file():
        tokenizer = _read_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _read_clip(folder)
    else:
        raise ValueError(f"{folder}: got no tokenizer, expected tokenizer.json, or vocab.json and merges.txt")
    return tokenizer, prepare(tokenizer, config, folder / "tokenizer_config.json")


def prepare(tokenizer: Tokenizer, config: Mapping[str, Any], source: Path) -> int:
    """Let `tokenizer` pad as tokenizer_config.json says; returns the number of tokens that its text encoder takes."""
    length = config.get("model_max_length")
    if not isinstance(length, int) or not 3 <= length <= LONGEST:
        raise ValueError(f"{source}: got model_max_length {length!r}, expected 3 to {LONGEST} tokens")
    pad_token = config.get("pad_token") or (tokenizer.padding or {}).get("pad_token") or CLIP_END
    set_pad_token(tokenizer, pad_token["content"] if isinstance(pad_token, dict) else pad_token)
    return length


def set_pad_token(tokenizer: Tokenizer, pad_token: str) -> None:
    """Let `tokenizer` carry its pad token, and cut and pad nothing by itself: files often fix a length not ours."""
    pad_id = tokenizer.token_to_id(pad_token)
    if pad_id is None:
        raise ValueError(
            f"got pad token {pad_token!r}, expected one of the tokenizer's {tokenizer.get_vocab_size()} tokens"
        )
    tokenizer.no_truncation()
    tokenizer.enable_padding(
        pad_id=pad_id, pad_token=pad_token
    )  # to the longest of a batch; `tokenize` encodes one by one


def write_tokenizer(tokenizer: Tokenizer, length: int, folder: Path) -> None:
    """Write the files that `read_tokenizer`, transformers and diffusers read. `length` as in `read_tokenizer`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.txt, or vocab.json + merges.txt: what transformers 4 reads
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, length))


def tokenizer_config(tokenizer: Tokenizer, length: int) -> dict[str, Any]:
    """What tokenizer_config.json says."""
    padding = tokenizer.padding
    assert padding is not None
    return {
        "tokenizer_class": tokenizer_class(tokenizer),
        "model_max_length": length,
        "pad_token": padding["pad_token"],
    }


def tokenizer_class(tokenizer: Tokenizer) -> str:
    """The transformers class that reads the same files."""
    if isinstance(tokenizer.model, models.WordPiece):
        return "BertTokenizer"
    if isinstance(tokenizer.model, models.BPE) and tokenizer.model.end_of_word_suffix == "</w>":
        return "CLIPTokenizer"
    return "PreTrainedTokenizerFast"


def clip_tokenizer(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """CLIP's byte-level BPE, piece for piece as transformers builds it for `CLIPTokenizer`."""
    tokenizer = Tokenizer(
        models.BPE(
            dict(vocab), list(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=CLIP_END
        )
    )
    pieces: list[Any] = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = cast(Any, normalizers.Sequence(pieces))
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    splits: list[Any] = [
        pre_tokenizers.Split(words, behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.pre_tokenizer = cast(Any, pre_tokenizers.Sequence(splits))
    tokenizer.decoder = cast(Any, decoders.ByteLevel())
    tokenizer.add_special_tokens([AddedToken(CLIP_START, special=True), AddedToken(CLIP_END, special=True)])
    ends = ((CLIP_END, vocab[CLIP_END]), (CLIP_START, vocab[CLIP_START]))
    tokenizer.post_processor = cast(
        Any, processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    )
    set_pad_token(tokenizer, CLIP_END)
    return tokenizer


def clip_vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The vocabulary that CLIP makes of its merges: bytes, bytes that end a word, what each merge joins, both ends."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = ("".join(pair) for pair in merges)
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *joined, CLIP_START, CLIP_END]
    return {token: number for number, token in enumerate(tokens)}


def read_merges(file: Path) -> list[tuple[str, str]]:
    """CLIP's merges.txt: a comment, then two tokens on every line."""
    lines = file.read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{file}: expected two tokens on every line")
    return cast("list[tuple[str, str]]", merges)


def _read_clip(folder: Path) -> Tokenizer:
    vocab = read_json(folder / "vocab.json")
    for token in (CLIP_START, CLIP_END):
        if token not in vocab:
            raise ValueError(f"{folder}/vocab.json: got no token {token}, expected CLIP's vocabulary")
    merges = read_merges(folder / "merges.txt")
    try:
        return clip_tokenizer(vocab, merges)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(
            f"{folder}: got merges.txt of another vocabulary ({error}), expected that of vocab.json"
        ) from error


def _read_tokenizer_json(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{file}: expected a tokenizer as the tokenizers library writes it ({error})") from error
