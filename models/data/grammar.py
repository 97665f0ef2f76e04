"""Sentences of a small English-like grammar, drawn by seed. Standard library only.

A sentence is one template with every slot filled: "the patient farmer danced behind the old mill". The grammar is data:
``SLOTS`` lists the words of each slot class and ``TEMPLATES`` the sentences with ``{class}`` where a word goes. A template
is drawn evenly, then every word evenly, which puts 25 to 32 bits into 5 to 10 words: enough that a model cannot learn the
sentences by heart, little enough for one surface to carry.

No word stands in two classes and no class twice in a template, so a sentence says which choices made it, and counting
choices counts sentences.
"""

import math
import random
import re
from collections.abc import Iterator

from coreflow.models.errors import InputError

SLOTS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "determiner": "this that every another some my our your his her their its",
        "preposition": "near behind beyond inside outside above below beside",
        "adjective": """
            ancient bright brave calm careful clever cold curious dark eager elegant faded famous foreign fragile gentle golden
            grand green happy heavy honest humble large lonely lucky modern narrow noble old pale patient plain proud quiet
            red rich rough secret shiny simple small strange tall tired warm wise young""",
        "being": """
            actor artist baker barber captain carpenter cat child clerk cook cousin dancer dentist doctor dog donkey driver
            editor engineer farmer fox gardener girl goat guard hunter judge king lawyer librarian merchant miner monkey nurse
            painter pilot poet prince queen rabbit robot sailor scholar scientist singer soldier student tailor teacher tiger
            uncle waiter wizard woman writer""",
        "transitive": """
            admired borrowed bought broke brought built carried caught chose cleaned collected copied counted described
            designed discovered drew dropped examined forgot found guarded held hid lifted lost measured moved noticed packed
            pushed received repaired returned sold stole studied touched wanted washed watched weighed won wrapped""",
        "intransitive": """
            arrived argued coughed cried danced dreamed fainted fished frowned giggled hesitated hummed jumped knelt laughed
            lingered listened marched nodded paused prayed rested sang shivered shouted sighed slept smiled sneezed stumbled
            swam trembled vanished waited wandered whistled worked yawned""",
        "thing": """
            apple basket bell blanket book bottle bowl box bracelet brush bucket candle chair clock coat coin compass crown
            cup diamond drum envelope feather flag flute guitar hammer hat jewel kettle key knife ladder lamp letter map
            mirror needle notebook package parcel pencil piano picture pillow ring rope sculpture shovel spoon statue table
            telescope ticket umbrella violin wallet wheel""",
        "adverb": """
            already angrily boldly briefly cheerfully certainly daily easily finally firmly gladly gracefully hastily kindly
            lately loudly nervously often politely promptly quickly rarely sadly safely seldom silently slowly softly suddenly
            twice usually yesterday""",
        "place": """
            airport bakery bank barn bridge cabin castle cave chapel cinema cottage courtyard factory farm forest fountain
            garage garden harbor hospital hotel island kitchen lake library lighthouse market meadow mill museum office
            orchard palace park prison river school stable station temple theater tower tunnel village""",
    }.items()
}

TEMPLATES: tuple[str, ...] = (
    "{determiner} {adjective} {being} {adverb} {intransitive}",
    "the {adjective} {being} {intransitive} {preposition} the {place}",
    "{adverb} the {being} {transitive} {determiner} {adjective} {thing}",
    "the {being} {transitive} the {adjective} {thing} {preposition} the {place}",
)

_SLOT = re.compile(r"\{(\w+)\}")


def vocabulary() -> frozenset[str]:
    """Every word that a sentence can hold."""
    literals = {word for template in TEMPLATES for word in _SLOT.sub("", template).split()}
    return frozenset(literals.union(*SLOTS.values()))


def count_sentences() -> int:
    """Number of distinct sentences of the grammar."""
    return sum(_count_choices(template) for template in TEMPLATES)


def sentences(seed: int, count: int) -> list[str]:
    """``count`` distinct sentences, the same for the same seed; a longer list starts with the shorter one."""
    if not 0 <= count <= count_sentences():
        raise InputError(f"{count} sentences asked of a grammar that has {count_sentences()}; ask for 0 or more, and no more than it has")
    stream = _draw(seed)
    drawn: dict[str, None] = {}  # a set that keeps the order
    while len(drawn) < count:
        drawn[next(stream)] = None
    return list(drawn)


def split(seed: int, train: int, held_out: int) -> tuple[list[str], list[str]]:
    """Training and held-out sentences, none in both. The held-out ones depend on ``seed`` and ``held_out`` alone."""
    if train < 0 or held_out < 0:
        raise InputError(f"a split into {train} and {held_out} sentences; both counts are 0 or more")
    drawn = sentences(seed, held_out + train)
    return drawn[held_out:], drawn[:held_out]


def _draw(seed: int) -> Iterator[str]:
    """Sentences without end, repeats included: a template, then one of its choices by number."""
    generator = random.Random(seed)
    plans = [
        (_SLOT.sub("{}", template), [SLOTS[name] for name in _SLOT.findall(template)], _count_choices(template)) for template in TEMPLATES
    ]
    while True:
        frame, classes, choices = plans[generator.randrange(len(plans))]
        number = generator.randrange(choices)  # its digits, in the mixed radix of the class sizes, are the words
        words = []
        for members in classes:
            number, digit = divmod(number, len(members))
            words.append(members[digit])
        yield frame.format(*words)


def _count_choices(template: str) -> int:
    return math.prod(len(SLOTS[name]) for name in _SLOT.findall(template))
