import pytest
import torch

from medcoss_components.errors import InputError
from medcoss_components.pretext.masking import (
    PatchOrder,
    WordMaskingDraw,
    draw_patch_noise,
    draw_word_masking,
    kept_count,
    mask_words,
    order_patches,
    select_patches,
)

VOCABULARY = 60
PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = torch.arange(VOCABULARY) < 5
STARTS = torch.arange(VOCABULARY) % 3 != 0  # 6, 9, 12, ... continue a word
RULES = {"starts_word": STARTS, "special": SPECIAL, "mask_id": MASK}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def texts(count, length, seed=0):
    """[CLS] pieces [SEP] padding, of random lengths."""
    g = generator(seed)
    ids = torch.randint(5, VOCABULARY, (count, length), generator=g)
    ids[:, 0] = CLS
    ends = torch.randint(1, length, (count,), generator=g)
    for row, end in enumerate(ends.tolist()):
        ids[row, end] = SEP
        ids[row, end + 1 :] = PAD
    return ids, ids != PAD


def words_by_loops(ids, padding):
    """Lists of positions, one for each word of one text."""
    words = []
    for place, token in enumerate(ids.tolist()):
        if token < 5 or not padding[place]:
            continue
        continues = token % 3 == 0 and words and words[-1][-1] == place - 1
        if continues:
            words[-1].append(place)
        else:
            words.append([place])
    return words


class TestPatches:
    @pytest.mark.parametrize(
        ("tokens", "ratio", "kept"),
        [(196, 0.75, 49), (144, 0.75, 36), (10, 0.9, 1), (7, 0.5, 3), (3, 0.75, 1), (5, 0.0, 5)],
    )
    def test_kept_count(self, tokens, ratio, kept):
        assert kept_count(tokens, ratio) == kept

    @pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
    def test_ratio_outside_its_range(self, ratio):
        with pytest.raises(InputError, match=f"mask_ratio={ratio}"):
            kept_count(196, ratio)

    def test_order_by_hand(self):
        noise = torch.tensor([[0.3, 0.1, 0.2, 0.0], [0.5, 0.4, 0.5, 0.9]])
        order = order_patches(noise, 0.5)
        assert order.visible.tolist() == [[3, 1], [1, 0]]  # equal noise keeps raster order
        assert order.removed.tolist() == [[2, 0], [2, 3]]
        assert order.mask().tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]

    @pytest.mark.parametrize("tokens", [6, 192])  # a 4x6x8 grid
    def test_order_equals_loops(self, tokens):
        noise = draw_patch_noise(3, tokens, generator())
        order = order_patches(noise, 0.75)
        for row in range(3):
            ranked = sorted(range(tokens), key=lambda n, r=row: noise[r, n].item())
            assert order.visible[row].tolist() == ranked[: tokens // 4]
            assert order.mask()[row].sum() == tokens - tokens // 4

    def test_selecting_and_bringing_back(self):
        patches = torch.randn(2, 6, 5)
        order = order_patches(torch.rand(2, 6), 0.5)
        ordered = select_patches(patches, order.index)
        for row in range(2):
            assert torch.equal(ordered[row], patches[row][order.index[row]])
        assert torch.equal(order.to_raster(ordered), patches)

    def test_noise_depends_on_the_generator_alone(self):
        assert torch.equal(draw_patch_noise(3, 4, generator(5)), draw_patch_noise(3, 4, generator(5)))
        assert draw_patch_noise(3, 4).shape == (3, 4)

    def test_nothing_removed(self):
        order = PatchOrder(index=torch.tensor([[1, 0]]), kept=2)
        assert order.removed.shape == (1, 0) and order.mask().eq(0).all()


class TestWords:
    def draw(self, count, length, seed=0):
        return draw_word_masking(count, length, VOCABULARY, generator(seed))

    def test_rows_picks_samples(self):
        draw = self.draw(5, 7)
        rows = draw.rows(torch.tensor([4, 1]))
        for name in ("select", "action", "replacement"):
            assert torch.equal(getattr(rows, name), getattr(draw, name)[[4, 1]])
        assert draw.rows(slice(0, 2)).select.shape == (2, 7)

    def test_whole_words_with_the_smallest_draws_are_chosen(self):
        ids, padding = texts(40, 30)
        draw = self.draw(40, 30)
        _, labels = mask_words(ids, padding, draw, share=0.3, **RULES)
        for row in range(40):
            words = words_by_loops(ids[row], padding[row])
            quota = max(1, round(0.3 * len(words)))
            ranked = sorted(words, key=lambda word, r=row: draw.select[r, word[0]].item())
            expected = sorted(place for word in ranked[:quota] for place in word)
            assert (labels[row] != -100).nonzero().flatten().tolist() == expected

    def test_labels_are_the_original_ids_and_other_tokens_stay(self):
        ids, padding = texts(20, 30)
        masked, labels = mask_words(ids, padding, self.draw(20, 30), **RULES)
        chosen = labels != -100
        assert torch.equal(labels[chosen], ids[chosen])
        assert torch.equal(masked[~chosen], ids[~chosen])
        assert not (chosen & (SPECIAL[ids] | ~padding)).any()

    def test_a_text_of_one_word_gives_one_word(self):
        ids = torch.tensor([[CLS, 7, 9, 12, SEP, PAD]])
        _, labels = mask_words(ids, ids != PAD, self.draw(1, 6), **RULES)
        assert labels.tolist() == [[-100, 7, 9, 12, -100, -100]]

    def test_a_text_without_words_gives_none(self):
        ids = torch.tensor([[CLS, SEP, PAD, PAD]])
        masked, labels = mask_words(ids, ids != PAD, self.draw(1, 4), **RULES)
        assert torch.equal(masked, ids) and labels.eq(-100).all()

    def test_a_continuation_after_a_special_token_is_a_word_of_its_own(self):
        ids = torch.tensor([[9, UNK, 12, 15, 7]])  # words: 9 | 12 15 | 7
        draw = WordMaskingDraw(torch.tensor([[0.9, 0.0, 0.1, 0.0, 0.8]]), torch.zeros(1, 5), torch.zeros(1, 5).long())
        masked, labels = mask_words(ids, torch.ones(1, 5), draw, **RULES)
        assert labels.tolist() == [[-100, -100, 12, 15, -100]]
        assert masked.tolist() == [[9, UNK, MASK, MASK, 7]]

    def test_action_decides_what_a_chosen_token_becomes(self):
        ids = torch.tensor([[7, 8, 10, 11]])
        action = torch.tensor([[0.79, 0.85, 0.95, 0.1]])
        draw = WordMaskingDraw(torch.rand(1, 4), action, torch.tensor([[0, 3, 4, 5]]))
        masked, _ = mask_words(ids, torch.ones(1, 4), draw, share=1.0, **RULES)
        assert masked.tolist() == [[MASK, 5 + 3, 10, MASK]]

    def test_shares_over_many_texts(self):
        ids = torch.randint(5, VOCABULARY, (400, 100), generator=generator(1))
        ids[~STARTS[ids]] -= 1  # one token a word
        masked, labels = mask_words(ids, torch.ones(400, 100), self.draw(400, 100), **RULES)
        chosen = labels != -100
        assert (chosen.sum(dim=1) == 15).all()
        hidden = (masked == MASK)[chosen].float().mean()
        same = (masked == ids)[chosen].float().mean()
        assert hidden.item() == pytest.approx(0.8, abs=0.02)
        assert same.item() == pytest.approx(0.1, abs=0.02)

    def test_random_tokens_are_ordinary_and_start_where_asked(self):
        ids = torch.full((200, 20), 7)
        draw = draw_word_masking(200, 20, VOCABULARY, generator())
        draw = WordMaskingDraw(draw.select, torch.full((200, 20), 0.85), draw.replacement)
        special = SPECIAL | (torch.arange(VOCABULARY) == 50)
        masked, _ = mask_words(
            ids, ids > 0, draw, starts_word=STARTS, special=special, mask_id=MASK, share=1.0, first_random_id=40
        )
        assert set(masked.unique().tolist()) == set(range(40, 60)) - {50}

    def test_rows_of_a_draw_give_the_rows_of_the_result(self):
        ids, padding = texts(6, 20)
        draw = self.draw(6, 20)
        masked, labels = mask_words(ids, padding, draw, **RULES)
        index = torch.tensor([5, 2])
        some = mask_words(ids[index], padding[index], draw.rows(index), **RULES)
        assert torch.equal(some[0], masked[index]) and torch.equal(some[1], labels[index])

    def test_inputs_are_left_alone(self):
        ids, padding = texts(4, 20)
        before = ids.clone()
        mask_words(ids, padding, self.draw(4, 20), **RULES)
        assert torch.equal(ids, before)

    @pytest.mark.parametrize("share", [0.0, 1.1])
    def test_share_outside_its_range(self, share):
        ids, padding = texts(2, 10)
        with pytest.raises(InputError, match=f"share={share}"):
            mask_words(ids, padding, self.draw(2, 10), share=share, **RULES)

    def test_a_vocabulary_without_ordinary_tokens_is_refused(self):
        ids, padding = texts(2, 10)
        with pytest.raises(InputError, match="first_random_id=60 leaves no ordinary token out of 60"):
            mask_words(ids, padding, self.draw(2, 10), first_random_id=60, **RULES)
