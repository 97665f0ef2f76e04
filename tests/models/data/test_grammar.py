import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.models.data import grammar
from coreflow.models.errors import InputError


def slots_of(template: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", template)


def test_grammar_has_at_least_300_words_and_ten_million_sentences() -> None:
    assert len(grammar.vocabulary()) >= 300
    assert grammar.count_sentences() >= 10**7


def test_no_word_stands_in_two_classes_or_twice_in_one() -> None:
    words = [word for members in grammar.SLOTS.values() for word in members]
    literals = {word for template in grammar.TEMPLATES for word in template.split() if "{" not in word}
    assert len(words) == len(set(words))
    assert not literals & set(words)
    assert len(words) + len(literals) == len(grammar.vocabulary())


def test_choices_can_be_read_back_so_counting_choices_counts_sentences() -> None:
    """With disjoint classes a sentence gives its sequence of classes; no two templates may share one."""
    assert len(set(grammar.TEMPLATES)) == len(grammar.TEMPLATES)
    for template in grammar.TEMPLATES:
        assert len(slots_of(template)) == len(set(slots_of(template)))


def test_count_equals_enumeration_of_a_small_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {name: members[:2] for name, members in grammar.SLOTS.items()}
    monkeypatch.setattr(grammar, "SLOTS", small)
    every = {
        template.format(**dict(zip(slots_of(template), words, strict=True)))
        for template in grammar.TEMPLATES
        for words in itertools.product(*(small[name] for name in slots_of(template)))
    }
    assert grammar.count_sentences() == len(every)
    assert set(grammar.sentences(0, len(every))) == every


@given(st.integers(), st.integers(0, 200))
def test_sentences_are_distinct_repeatable_and_of_lowercase_known_words(seed: int, count: int) -> None:
    drawn = grammar.sentences(seed, count)
    assert drawn == grammar.sentences(seed, count)
    assert len(drawn) == len(set(drawn)) == count
    assert all(set(sentence.split(" ")) <= grammar.vocabulary() for sentence in drawn)
    assert all(4 <= len(sentence.split(" ")) <= 12 for sentence in drawn)
    assert all(re.fullmatch("[a-z ]+", sentence) for sentence in drawn)


def test_another_seed_gives_other_sentences() -> None:
    assert not set(grammar.sentences(0, 100)) & set(grammar.sentences(1, 100))


def test_a_few_thousand_sentences_use_every_word() -> None:
    assert {word for sentence in grammar.sentences(0, 5000) for word in sentence.split()} == grammar.vocabulary()


@given(st.integers(), st.integers(0, 100), st.integers(0, 100))
def test_split_is_disjoint_and_its_held_out_part_does_not_depend_on_the_training_part(seed: int, train: int, held_out: int) -> None:
    training, unseen = grammar.split(seed, train, held_out)
    assert (len(training), len(unseen)) == (train, held_out)
    assert not set(training) & set(unseen)
    assert unseen == grammar.split(seed, train + 1, held_out)[1]


@pytest.mark.parametrize("count", [-1, grammar.count_sentences() + 1], ids=["negative", "more than there are"])
def test_a_count_that_the_grammar_cannot_give_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} sentences asked"):
        grammar.sentences(0, count)


@pytest.mark.parametrize("sizes", [(-1, 5), (5, -1)], ids=["train", "held out"])
def test_a_split_with_a_negative_part_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="0 or more"):
        grammar.split(0, *sizes)
