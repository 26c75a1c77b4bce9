import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from medcoss_components.errors import InputError
from medcoss_components.files import sha256_file
from medcoss_components.text.vocabulary import SPECIAL_TOKENS, Vocabulary, load_vocabulary, train_vocabulary

TEXTS = [
    "No pleural effusion. The heart is normal.",
    "Small pleural effusion, heart enlarged.",
    "Heart size normal; no pneumothorax!",
    "Café-au-lait: 5 µm ± 2 (normal).",
] * 5
WORDPIECE = [*SPECIAL_TOKENS[:1], "[unused0]", *SPECIAL_TOKENS[1:], "heart", "##s", "pneumo", "##thorax", ".", "no"]


@pytest.fixture(scope="module")
def vocabulary():
    return train_vocabulary(TEXTS, size=120)


def write_wordpiece(folder, pieces=WORDPIECE, name="vocab.txt"):
    path = folder / name
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return path


def words_by_flags(vocabulary, ids):
    """Oracle: glue pieces to words with starts_word alone."""
    words = []
    for number in ids:
        if vocabulary.special[number]:
            continue
        if vocabulary.starts_word[number]:
            words.append(vocabulary.token(number))
        else:
            words[-1] += vocabulary.token(number)[2:]
    return words


class TestTraining:
    def test_merges_the_most_frequent_pair_first(self):
        """Characters a, b; pieces: 5 special, a, b, ##a, ##b; then 'ab' (4 times) before 'ba' (once)."""
        vocabulary = train_vocabulary(["ab ab ab ab ba"], size=10)
        assert vocabulary.tokens == (*SPECIAL_TOKENS, "a", "b", "##a", "##b", "ab")

    def test_same_texts_give_the_same_bytes(self, tmp_path):
        rng = np.random.default_rng(0)
        letters = list("abcdefghijklmnopqrstuvwxyzµ")
        texts = [" ".join("".join(rng.choice(letters, rng.integers(1, 8))) for _ in range(20)) for _ in range(200)]
        files = [tmp_path / name for name in ("one.json", "two.json", "three.json")]
        for file in files:
            train_vocabulary(texts, size=400, path=file)
        assert len({file.read_bytes() for file in files}) == 1

    def test_order_of_texts_does_not_matter(self, vocabulary):
        assert train_vocabulary(TEXTS[::-1], size=120).hash == vocabulary.hash

    def test_size_is_an_upper_bound(self):
        assert train_vocabulary(["ab ab"], size=4000).size == 10

    def test_rare_characters_are_dropped(self, monkeypatch):
        monkeypatch.setattr("medcoss_components.text.vocabulary.MAX_CHARACTERS", 2)
        vocabulary = train_vocabulary(["aaa bb z"], size=20)
        assert "z" not in vocabulary.tokens and "a" in vocabulary.tokens
        assert vocabulary.encode_batch(["z"], 4)[0].tolist() == [2, vocabulary.unk_id, 3, 0]

    def test_too_small_a_size_is_refused(self):
        with pytest.raises(InputError, match=r"size=6.*2 characters.*at least 9"):
            train_vocabulary(["ab"], size=6)

    @pytest.mark.parametrize("texts", [[], ["", "  "]])
    def test_no_text_is_refused(self, texts):
        with pytest.raises(InputError, match=f"got {len(texts)} texts"):
            train_vocabulary(texts, size=100)


class TestVocabulary:
    def test_special_pieces_come_first(self, vocabulary):
        assert vocabulary.tokens[:5] == SPECIAL_TOKENS
        ids = (vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id)
        assert ids == (0, 1, 2, 3, 4)
        assert vocabulary.first_random_id == 5
        assert len(vocabulary) == vocabulary.size == len(vocabulary.tokens)
        assert vocabulary.special.tolist() == [True] * 5 + [False] * (vocabulary.size - 5)

    def test_encodes_between_cls_and_sep_and_pads(self, vocabulary):
        ids = vocabulary.encode_batch(["heart", "heart normal"], 6)
        heart, normal = vocabulary.tokens.index("heart"), vocabulary.tokens.index("normal")
        assert ids.dtype == np.uint16
        assert ids.tolist() == [[2, heart, 3, 0, 0, 0], [2, heart, normal, 3, 0, 0]]

    def test_long_texts_are_cut_and_keep_sep(self, vocabulary):
        ids = vocabulary.encode_batch(["heart " * 50], 8)
        assert ids.shape == (1, 8)
        assert ids[0, 0] == 2 and ids[0, -1] == 3 and (ids[0, 1:-1] == vocabulary.tokens.index("heart")).all()

    def test_batches_are_encoded_like_single_texts(self, vocabulary, monkeypatch):
        single = np.concatenate([vocabulary.encode_batch([text], 20) for text in TEXTS])
        monkeypatch.setattr("medcoss_components.text.vocabulary.BATCH", 3)
        assert np.array_equal(vocabulary.encode_batch(TEXTS, 20), single)
        assert vocabulary.encode_batch([], 20).shape == (0, 20)

    def test_flags_give_words_back(self, vocabulary):
        ids = vocabulary.encode_batch(["Hearts, pneumothorax (normal) plural."], 40)[0]
        assert words_by_flags(vocabulary, ids) == ["hearts", ",", "pneumothorax", "(", "normal", ")", "plural", "."]
        assert any(token.startswith("##") for token in map(vocabulary.token, ids))

    def test_starts_word_is_true_at_special_pieces(self, vocabulary):
        assert vocabulary.starts_word.dtype == torch.bool
        assert vocabulary.starts_word[:5].all()
        expected = [not token.startswith("##") for token in vocabulary.tokens]
        assert vocabulary.starts_word.tolist() == expected and not all(expected)

    def test_decode_follows_words_and_punctuation(self, vocabulary):
        ids = vocabulary.encode_batch(["No pneumothorax. Café!"], 40)[0]
        assert vocabulary.decode(ids) == "no pneumothorax. cafe!"

    def test_special_names_inside_a_text_are_plain_text(self, vocabulary):
        ids = vocabulary.encode_batch(["[MASK] [PAD] heart"], 30)[0]
        length = int((ids != 0).sum())
        assert vocabulary.mask_id not in ids and (ids[:length] != 0).all() and ids[length - 1] == 3

    def test_unknown_character_is_unk(self, vocabulary):
        assert vocabulary.unk_id in vocabulary.encode_batch(["\u4e2d"], 5)[0]

    def test_short_max_length_is_refused(self, vocabulary):
        with pytest.raises(InputError, match="max_length=2"):
            vocabulary.encode_batch(["heart"], 2)

    @pytest.mark.parametrize("number", [-1, 120])
    def test_token_outside_is_refused(self, vocabulary, number):
        with pytest.raises(InputError, match=f"token id {number}: must be in 0 .. {vocabulary.size - 1}"):
            vocabulary.token(number)

    def test_pickles(self, vocabulary):
        copy = pickle.loads(pickle.dumps(vocabulary))
        assert copy.hash == vocabulary.hash
        assert np.array_equal(copy.encode_batch(TEXTS, 12), vocabulary.encode_batch(TEXTS, 12))

    def test_threads_are_off_outside_and_on_inside(self, vocabulary, monkeypatch):
        from medcoss_components.text import vocabulary as module

        monkeypatch.setattr(module, "_USER_PARALLELISM", None)
        with module._tokenizer_threads():
            assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        monkeypatch.setattr(module, "_USER_PARALLELISM", "false")
        with module._tokenizer_threads():
            assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


class TestFiles:
    def test_hash_is_that_of_the_file(self, vocabulary, tmp_path):
        path = vocabulary.save(tmp_path / "deep" / "vocabulary.json")
        assert sha256_file(path) == vocabulary.hash
        assert load_vocabulary(path).hash == vocabulary.hash
        assert [entry.name for entry in path.parent.iterdir()] == ["vocabulary.json"]

    def test_tokenizers_reads_it(self, vocabulary, tmp_path):
        path = vocabulary.save(tmp_path / "vocabulary.json")
        encoding = Tokenizer.from_file(str(path)).encode("No pneumothorax.")
        assert encoding.ids == [int(i) for i in vocabulary.encode_batch(["No pneumothorax."], 40)[0] if i]

    def test_gaps_between_ids_read_as_unknown(self, vocabulary, tmp_path):
        content = json.loads(vocabulary.save(tmp_path / "v.json").read_text())
        content["model"]["vocab"]["zzz"] = vocabulary.size + 1
        wide = Vocabulary(content=json.dumps(content))
        assert wide.size == vocabulary.size + 2 and wide.token(vocabulary.size) == "[UNK]"

    def test_missing_file(self, tmp_path):
        with pytest.raises(InputError, match="nowhere.json: no such vocabulary file"):
            load_vocabulary(tmp_path / "nowhere.json")

    def test_other_ending(self, tmp_path):
        (tmp_path / "v.model").write_text("x")
        with pytest.raises(InputError, match=r"v\.model.*got '\.model'"):
            load_vocabulary(tmp_path / "v.model")

    def test_broken_json(self, tmp_path):
        (tmp_path / "v.json").write_text("{}")
        with pytest.raises(InputError, match=r"v\.json: not a tokenizer file"):
            load_vocabulary(tmp_path / "v.json")

    def test_binary_file(self, tmp_path):
        (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match=r"vocab\.txt: not UTF-8"):
            load_vocabulary(tmp_path / "vocab.txt")

    def test_tokenizer_without_special_pieces(self, tmp_path):
        from tokenizers import models

        Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(tmp_path / "v.json"))
        with pytest.raises(InputError, match=r"missing: \[PAD\], \[CLS\], \[SEP\], \[MASK\]"):
            load_vocabulary(tmp_path / "v.json")


class TestWordPiece:
    def test_keeps_the_ids_of_the_list(self, tmp_path):
        vocabulary = load_vocabulary(write_wordpiece(tmp_path))
        assert vocabulary.tokens == tuple(WORDPIECE)
        assert (vocabulary.pad_id, vocabulary.unk_id, vocabulary.mask_id, vocabulary.first_random_id) == (0, 2, 5, 6)
        ids = vocabulary.encode_batch(["No Hearts. pneumothorax lung"], 10)[0]
        assert [vocabulary.token(i) for i in ids] == [
            *("[CLS]", "no", "heart", "##s", ".", "pneumo", "##thorax", "[UNK]", "[SEP]", "[PAD]")
        ]
        assert vocabulary.decode(ids) == "no hearts. pneumothorax"

    def test_capital_letters_in_the_list_keep_case(self, tmp_path):
        path = write_wordpiece(tmp_path, [*SPECIAL_TOKENS, "Heart", "heart"])
        assert load_vocabulary(path).encode_batch(["Heart heart"], 4)[0].tolist() == [2, 5, 6, 3]
        assert load_vocabulary(path, lowercase=True).encode_batch(["Heart heart"], 4)[0].tolist() == [2, 6, 6, 3]

    def test_saves_as_json_with_the_same_hash(self, tmp_path):
        vocabulary = load_vocabulary(write_wordpiece(tmp_path))
        again = load_vocabulary(vocabulary.save(tmp_path / "vocabulary.json"))
        assert again.hash == vocabulary.hash and again.tokens == vocabulary.tokens

    def test_large_lists_need_uint32(self, tmp_path):
        path = write_wordpiece(tmp_path, [*SPECIAL_TOKENS, *(f"w{i}" for i in range(65600))])
        vocabulary = load_vocabulary(path)
        ids = vocabulary.encode_batch(["w65599"], 3)
        assert ids.dtype == np.uint32 and ids.tolist() == [[2, 65604, 3]]

    def test_repeated_line(self, tmp_path):
        path = write_wordpiece(tmp_path, [*SPECIAL_TOKENS, "a", "b", "a"])
        with pytest.raises(InputError, match=r"vocab\.txt.*'a' stands there more than once"):
            load_vocabulary(path)

    def test_missing_special_piece(self, tmp_path):
        path = write_wordpiece(tmp_path, ["[PAD]", "[UNK]", "a"])
        with pytest.raises(InputError, match=r"missing: \[CLS\], \[SEP\], \[MASK\]"):
            load_vocabulary(path)


def test_importing_loads_neither_torch_nor_tokenizers():
    code = (
        "import sys, medcoss_components.text.vocabulary;"
        "print([name for name in ('torch', 'tokenizers') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
