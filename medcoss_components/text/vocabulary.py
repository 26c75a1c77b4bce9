"""The vocabulary: trained byte-pair pieces or a given WordPiece list, stored as one hashed file.

A piece that continues a word starts with ``##`` (``pneumo ##thor ##ax``), in both kinds, so whole-word masking needs
only :attr:`Vocabulary.starts_word`. A text becomes ``[CLS] pieces [SEP]`` and is padded with ``[PAD]``; that layout is
the one of BERT, which the published MedCoSS weights were trained with.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medcoss_components.errors import InputError
from medcoss_components.files import atomic_path

if TYPE_CHECKING:
    import torch

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PREFIX = "##"
MAX_CHARACTERS = 400  # distinct characters kept by training, the most frequent ones
BATCH = 4096  # texts handed to the tokenizer at once

_USER_PARALLELISM = os.environ.get("TOKENIZERS_PARALLELISM")


@contextmanager
def _tokenizer_threads() -> Iterator[None]:
    """Let ``tokenizers`` use its threads inside the block and leave them off outside.

    Outside they must be off, because a process that is forked later (a data loader worker) cannot use threads of its
    parent. A value of ``TOKENIZERS_PARALLELISM`` that the user has set wins.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = _USER_PARALLELISM or "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = _USER_PARALLELISM or "false"


class Vocabulary:
    """Token pieces with their ids; turns texts into ids and back.

    Args:
        content: the text of a ``vocabulary.json`` file (the format of the ``tokenizers`` package). Use
            :func:`train_vocabulary` or :func:`load_vocabulary` rather than calling this directly.
        source: what to name in error messages.

    Attributes:
        size: number of pieces; ids are 0 .. size - 1.
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special pieces.
        first_random_id: ids from here on may replace a masked word (trained: 5; BERT's WordPiece: 104).
        hash: SHA-256 of the file that :meth:`save` writes.

    Raises:
        InputError: when the content is no tokenizer file or lacks a special piece.
    """

    def __init__(self, *, content: str, source: str = "vocabulary") -> None:
        self._content, self._source = content, source
        self._tokenizer = _read_tokenizer(content, source)
        self.size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        ids = [self._tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
        missing = [token for token, number in zip(SPECIAL_TOKENS, ids, strict=True) if number is None]
        if missing:
            raise InputError(
                f"{source}: a vocabulary holds {', '.join(SPECIAL_TOKENS)}; missing: {', '.join(missing)}."
            )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (int(number) for number in ids)
        self.first_random_id = max(ids) + 1
        self.hash = hashlib.sha256(content.encode("utf-8")).hexdigest()

    def __len__(self) -> int:
        return self.size

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._content, self._source)

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """All pieces in the order of their ids."""
        by_id = {number: token for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        return tuple(by_id.get(number, "[UNK]") for number in range(self.size))

    @cached_property
    def special(self) -> torch.Tensor:
        """(size,) bool: True at the five special pieces, which are never masked or predicted."""
        return _as_bool_tensor([token in SPECIAL_TOKENS for token in self.tokens])

    @cached_property
    def starts_word(self) -> torch.Tensor:
        """(size,) bool: False where a piece continues a word (``##ax``), True where it opens one, also if special."""
        return _as_bool_tensor([not token.startswith(PREFIX) or token == PREFIX for token in self.tokens])

    def token(self, number: int) -> str:
        """The piece with this id, for example ``"##ax"``.

        Raises:
            InputError: for an id outside 0 .. size - 1.
        """
        if not 0 <= number < self.size:
            raise InputError(f"token id {number}: must be in 0 .. {self.size - 1}, the ids of this vocabulary.")
        return self.tokens[number]

    def encode_batch(self, texts: Sequence[str], max_length: int) -> np.ndarray:
        """Turn texts into padded ids, with the tokenizer's own threads.

        Args:
            texts: n texts of any length; what does not fit is cut off, ``[SEP]`` stays.
            max_length: L >= 3, number of ids per text.

        Returns:
            (n, L) uint16, or uint32 for more than 65,535 pieces: ``[CLS] pieces [SEP] [PAD] ...``. Real tokens are
            where the id is not ``pad_id``.

        Raises:
            InputError: for ``max_length`` below 3.
        """
        if max_length < 3:
            raise InputError(f"max_length={max_length}: must be at least 3 to hold [CLS], one piece and [SEP].")
        ids = np.full((len(texts), max_length), self.pad_id, dtype=self.dtype)
        self._tokenizer.enable_truncation(max_length)
        with _tokenizer_threads():
            for start in range(0, len(texts), BATCH):
                batch = list(texts[start : start + BATCH])
                for row, encoding in enumerate(self._tokenizer.encode_batch_fast(batch), start):
                    ids[row, : len(encoding.ids)] = encoding.ids
        return ids

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.size <= 65535 else np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a row of ids without special pieces; spaces follow BERT's rules (``"no effusion."``)."""
        return self._tokenizer.decode([int(number) for number in ids], skip_special_tokens=True)

    def save(self, path: str | Path) -> Path:
        """Write ``vocabulary.json`` atomically: equal vocabularies give equal bytes, whose SHA-256 is :attr:`hash`."""
        path = Path(path)
        with atomic_path(path) as partial:
            partial.write_bytes(self._content.encode("utf-8"))
        return path


def train_vocabulary(texts: Iterable[str], *, size: int = 4000, path: str | Path | None = None) -> Vocabulary:
    """Train a byte-pair vocabulary (METHOD.md section 4) and save it.

    Text is lower-cased, accents are removed and punctuation stands alone, as in BERT. The same texts give the same file
    every time: the pieces of one character get their ids before counting, since the trainer would otherwise number
    them in the order of a hash table and break ties between merges by it.

    Args:
        texts: the training split; read once, kept in memory.
        size: pieces to end with, the five special ones included.
        path: where to write ``vocabulary.json``; None does not write.

    Returns:
        The vocabulary; smaller than ``size`` when the texts have fewer pieces to offer.

    Raises:
        InputError: when there is no text or ``size`` does not leave room for the characters.
    """
    texts = list(texts)
    characters = _frequent_characters(texts)
    if not characters:
        raise InputError(f"texts: a vocabulary needs at least one text that is not empty, got {len(texts)} texts.")
    continuing = [PREFIX + character for character in characters if _may_continue(character)]
    room = len(SPECIAL_TOKENS) + len(characters) + len(continuing)
    if size < room:
        raise InputError(f"size={size}: the texts use {len(characters)} characters and need at least {room} pieces.")
    vocabulary = Vocabulary(content=_train(texts, size, characters, continuing), source="trained vocabulary")
    if path is not None:
        vocabulary.save(path)
    return vocabulary


def load_vocabulary(path: str | Path, *, lowercase: bool | None = None) -> Vocabulary:
    """Read a ``vocabulary.json`` of this package or a WordPiece ``vocab.txt`` (BERT's layout, one piece per line).

    Args:
        path: the file; its ending decides.
        lowercase: for ``vocab.txt`` only: whether texts are lower-cased; None decides by the pieces (a list without
            capital letters is lower-cased).

    Raises:
        InputError: when the file is missing, is of another kind or lacks a special piece.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such vocabulary file. Give a vocabulary.json or a WordPiece vocab.txt.")
    if path.suffix not in (".json", ".txt"):
        raise InputError(f"{path}: must end in .json (tokenizers) or .txt (WordPiece), got {path.suffix!r}.")
    text = _read_text(path)
    content = text if path.suffix == ".json" else _wordpiece_content(path, text, lowercase)
    return Vocabulary(content=content, source=str(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}). Give a vocabulary.json or vocab.txt.") from error


def _rebuild(content: str, source: str) -> Vocabulary:
    return Vocabulary(content=content, source=source)


def _as_bool_tensor(flags: list[bool]) -> torch.Tensor:
    import torch

    return torch.tensor(flags, dtype=torch.bool)


def _read_tokenizer(content: str, source: str) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the Rust reader raises bare Exception for every kind of bad content
        raise InputError(f"{source}: not a tokenizer file ({error}). Write it with train_vocabulary.") from error
    tokenizer.encode_special_tokens = True  # a report that holds "[MASK]" as text is cut into pieces like any other
    return tokenizer


def _normalizer(lowercase: bool = True) -> Any:
    from tokenizers.normalizers import BertNormalizer

    return BertNormalizer(lowercase=lowercase)


def _finish(model: Any, *, lowercase: bool = True) -> str:
    """Dress a model as a BERT-like tokenizer and return the text of its file."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX, cleanup=True)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return tokenizer.to_str(pretty=False) + "\n"


def _frequent_characters(texts: list[str]) -> list[str]:
    """The MAX_CHARACTERS most frequent characters of the normalised texts, by code point; ties keep the smaller one.

    Each different character is normalised once, which is some ten times faster than normalising the texts.
    """
    raw, counts, normalizer = Counter[str](), Counter[str](), _normalizer()
    for text in texts:
        raw.update(text)
    for character, count in raw.items():
        for normal in normalizer.normalize_str(character):
            counts[normal] += count
    ranked = sorted((-count, character) for character, count in counts.items() if not character.isspace())
    return sorted(character for _, character in ranked[:MAX_CHARACTERS])


def _may_continue(character: str) -> bool:
    """Whether a character can stand inside a word: punctuation cannot, the pre-tokenizer isolates it."""
    return character.isalnum() or not (character.isascii() or unicodedata.category(character).startswith("P"))


def _train(texts: list[str], size: int, characters: list[str], continuing: list[str]) -> str:
    """Train with the one-character pieces given as special tokens (this fixes their ids), then rebuild without that."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    options = {"unk_token": "[UNK]", "continuing_subword_prefix": PREFIX}
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _normalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *characters, *continuing],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    with _tokenizer_threads():
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    trained = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in trained["merges"]]
    return _finish(models.BPE(vocab=trained["vocab"], merges=merges, **options))


def _wordpiece_content(path: Path, text: str, lowercase: bool | None) -> str:
    from tokenizers import models

    pieces = re.split(r"\r?\n", text.rstrip("\r\n"))
    repeated = [piece for piece, count in Counter(pieces).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: every line must be another piece, {repeated[0]!r} stands there more than once.")
    missing = [token for token in SPECIAL_TOKENS if token not in pieces]
    if missing:
        raise InputError(f"{path}: a WordPiece list holds {', '.join(SPECIAL_TOKENS)}; missing: {', '.join(missing)}.")
    if lowercase is None:
        lowercase = not any(piece != piece.lower() for piece in pieces if piece not in SPECIAL_TOKENS)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return _finish(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100), lowercase=lowercase)
