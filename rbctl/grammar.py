"""Some English grammar: the words of a relation in a sentence, and who stands around them in which part.

It knows passive voice, relative clauses, fronted phrases ("On the bear sits a cat"), "X's back", and named roles
("as the rider"). A text is tokens: lower-case words, and one token for every mention of an individual.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rbctl.relations import Relation

_MARK = "\ue000"  # stands in front of an individual's number among the tokens
_TOKEN = re.compile(rf"{_MARK}\d+|['’]s(?!\w)|[^\W_]+(?:['’](?!s(?!\w))[^\W_]+)*|[,;:.!?]")

_BE = {"is", "are", "was", "were", "be", "been", "being", "am", "get", "gets", "got", "getting"}
_AUXILIARIES = _BE | {"has", "have", "had", "will", "can", "may", "does", "do", "did"}
_DETERMINERS = {"a", "an", "the", "this", "that", "his", "her", "its", "their", "my", "your", "our", "one", "two"}
_DETERMINERS |= {"three", "another", "some", "both", "each", "every"}
_PLACES = {"on", "upon", "onto", "atop", "astride", "aboard", "over", "above", "under", "below", "behind", "beside"}
_PLACES |= {"before", "near", "by", "against", "at", "to", "after", "in", "inside", "around", "between"}
_JOINTS = {"and", "then", "but", "or", "while", ","}
_PARTICLES = {"together", "up", "down", "off", "away"}  # an object may stand in front: "carry a bear together"
_OF_PLACE = {"next", "of", "front", "top", "back", "the"}
_RELATIVE = {"that", "which", "who", "whom", "whose"}
_PRONOUNS = {"it", "he", "she", "they"}
_ENDS = {".", "!", "?", ";"}
# Past participles that "-ed" does not make, of verbs that one individual can do to another.
_IRREGULAR = {
    "bear": "borne", "beat": "beaten", "bind": "bound", "bite": "bitten", "bring": "brought", "buy": "bought",
    "catch": "caught", "choose": "chosen", "cut": "cut", "draw": "drawn", "drive": "driven", "eat": "eaten",
    "feed": "fed", "feel": "felt", "fight": "fought", "find": "found", "fly": "flown", "follow": "followed",
    "forgive": "forgiven", "give": "given", "grip": "gripped", "hear": "heard", "hide": "hidden", "hit": "hit",
    "hold": "held", "hurt": "hurt", "keep": "kept", "kneel": "knelt", "lay": "laid", "lead": "led", "lean": "leant",
    "leap": "leapt", "leave": "left", "lie": "lain", "lift": "lifted", "meet": "met", "pay": "paid", "put": "put",
    "read": "read", "ride": "ridden", "run": "run", "say": "said", "see": "seen", "seek": "sought", "sell": "sold",
    "send": "sent", "set": "set", "sew": "sewn", "shake": "shaken", "shoot": "shot", "show": "shown", "sing": "sung",
    "sit": "sat", "sleep": "slept", "slide": "slid", "speak": "spoken", "spin": "spun", "stand": "stood",
    "steal": "stolen", "stick": "stuck", "strike": "struck", "sweep": "swept", "swing": "swung", "take": "taken",
    "teach": "taught", "tear": "torn", "tell": "told", "think": "thought", "throw": "thrown", "tread": "trodden",
    "understand": "understood", "wake": "woken", "wear": "worn", "wind": "wound", "write": "written",
}  # fmt: skip


@dataclass(frozen=True)
class Match:
    """Tokens [start, end) that say a relation.

    Attributes:
        passive: who is named in front of them bears what is done.
        agent: the individual behind "by"; None where there is none.
    """

    relation: Relation
    start: int
    end: int
    passive: bool = False
    agent: int | None = None


def tokens_of(text: str, names: Sequence[str]) -> list[str]:
    """Lower-case words, commas and stops; every mention of an individual is one token, ``_MARK`` and its number.

    Names are found as whole words, the longer ones first; where a script has no spaces, anywhere.
    """
    text = text.replace(_MARK, " ")
    same: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        same.setdefault(" ".join(name.lower().split()), []).append(number)
    for name in sorted(same, key=len, reverse=True):
        if not name:
            continue
        phrase = r"\s+".join(re.escape(word) for word in name.split())
        whole = rf"(?<![\w{_MARK}]){phrase}(?:e?s)?(?!\w)"
        pattern = whole if re.search(whole, text, re.IGNORECASE) else phrase if not name.isascii() else whole
        numbers, mentions = same[name], iter(range(len(text)))

        def mark(match: re.Match[str], numbers: list[int] = numbers, mentions: Iterator[int] = mentions) -> str:
            capital = "^" if match[0][:1].isupper() else ""  # a proper name has no article in front
            return f" {_MARK}{numbers[min(next(mentions), len(numbers) - 1)]}{capital} "

        text = re.sub(pattern, mark, text, flags=re.IGNORECASE)
    text = re.sub(rf"({_MARK}\d+\^?)\s*\(([^()]*)\)", r"\1 , \2 , ", text)  # "cat (rider)" is "cat, rider,"
    return re.findall(rf"{_MARK}\d+\^?|{_TOKEN.pattern}", text.lower())


def _individual(token: str) -> int | None:
    return int(token.strip(f"{_MARK}^")) if token.startswith(_MARK) else None


def _joined(tokens: Sequence[str]) -> str:
    return " ".join(tokens)


def spoken(text: str, tokens: Sequence[str]) -> str:
    """Some words in a row as the text has them, with its hyphens and capitals."""
    match = re.search(r"[\W_]+".join(map(re.escape, tokens)), text, re.IGNORECASE)
    return match[0] if match else _joined(tokens)


def matches_of(tokens: Sequence[str], relations: Iterable[Relation]) -> list[Match]:
    """Where the text says one of the relations, in order; none that lies inside another."""
    everywhere: list[Match] = []
    said = set(tokens)
    for relation in relations:
        for form in (relation.predicate, *relation.forms):
            words = _words(form)
            if _verbs_of(words).isdisjoint(said):  # most forms are not in a text, and reading on is slow
                continue
            everywhere += _active(tokens, relation, words)
            everywhere += _passive(tokens, relation, words)
    left: list[Match] = []
    for match in sorted(everywhere, key=lambda m: (m.start, -m.end, not m.passive)):
        if not left or match.end > left[-1].end or (match.start, match.end) == (left[-1].start, left[-1].end):
            left.append(match)
    return left


def _active(tokens: Sequence[str], relation: Relation, words: tuple[str, ...]) -> Iterator[Match]:
    participles = _participles(words)
    without_auxiliary = [words[len(_auxiliaries(words)) :]] if words[-1:] and _auxiliaries(words) else []
    for form in (list(words), *(form for form in without_auxiliary if form and form[0].endswith("ing"))):
        for start in _places(tokens, form):
            end = start + len(form)
            verb = form[len(_auxiliaries(form)) :][:1]
            turned = verb and verb[0] in participles and (_agent(tokens, end) is not None or _be(tokens, start))
            if not turned or relation.symmetric:
                yield Match(relation, start, end)
    yield from _parted(tokens, relation, words)
    if not relation.symmetric:
        yield from _inverted(tokens, relation, words)


def _parted(tokens: Sequence[str], relation: Relation, words: tuple[str, ...]) -> Iterator[Match]:
    """ "carrying a bear together" for "carrying together": the object stands in front of the particle."""
    verb = words[:-1]
    for start in _places(tokens, verb) if words[-1] in _PARTICLES else ():
        particle = next((k for k in _places(tokens, words[-1:]) if start + len(verb) < k <= start + len(verb) + 5), 0)
        objects = [k for k in range(start + len(verb), particle) if _individual(tokens[k]) is not None]
        if len(objects) == 1 and _noun_phrase(tokens, objects[0]) == start + len(verb) and particle == objects[0] + 1:
            yield Match(relation, start, start + len(verb))


def _inverted(tokens: Sequence[str], relation: Relation, words: tuple[str, ...]) -> Iterator[Match]:
    """ "On the bear sits a cat" for "sits on": the preposition and its noun stand in front."""
    split = next((k for k, word in enumerate(words) if k and word in _PLACES), len(words))
    verb, phrase = words[:split], words[split:]
    for at in _places(tokens, phrase):
        if not _starts_clause(tokens, at):
            continue
        for start in _places(tokens, verb):
            mentions = [k for k in range(at, start) if _individual(tokens[k]) is not None]
            near = mentions and mentions[0] - at < len(phrase) + 5 and start - mentions[-1] <= 4
            if near and len(mentions) < max(len(relation.roles), 2):
                yield Match(relation, start, start + len(verb))


def _passive(tokens: Sequence[str], relation: Relation, words: tuple[str, ...]) -> Iterator[Match]:
    """ "is being ridden by", "carried on its back by", "is followed"."""
    if relation.symmetric:
        return
    rest = list(words[len(_auxiliaries(words)) + 1 :])
    rests = [rest, rest[:-1]] if rest and rest[0] not in _PLACES else [rest]  # "given food (to) by"
    for participle in _participles(words):
        for form in ([participle, *rest] for rest in rests):
            for start in _places(tokens, form):
                end, agent = start + len(form), _agent(tokens, start + len(form))
                first = _be(tokens, start)
                if agent is not None:
                    yield Match(relation, start if first is None else first, agent[0], True, agent[1])
                elif first is not None:
                    yield Match(relation, first, end, True)
                elif participle not in _verbs(relation):  # "chased through a wood", but "jumped over the dog"
                    yield Match(relation, start, end, not _object_follows(tokens, end))


def _places(tokens: Sequence[str], form: Sequence[str]) -> list[int]:
    """Where a form begins among the tokens."""
    if not form or form[0] not in tokens:
        return []
    wanted = list(form)
    return [k for k in range(len(tokens) - len(form) + 1) if tokens[k : k + len(form)] == wanted]


def _auxiliaries(words: Sequence[str]) -> list[str]:
    leading = []
    for word in words[:-1]:
        if word not in _AUXILIARIES:
            break
        leading.append(word)
    return leading


@functools.cache
def _verbs_of(words: tuple[str, ...]) -> frozenset[str]:
    """Words of which every match of a form has one: its first behind auxiliaries, or a participle."""
    return _participles(words) | {*words[len(_auxiliaries(words)) :][:1]}


@functools.cache
def _words(form: str) -> tuple[str, ...]:
    return tuple(tokens_of(form, ()))


def _verbs(relation: Relation) -> set[str]:
    """First words of the relation's forms, auxiliaries left out: "rides", "riding", "rode"."""
    forms = [_words(form) for form in (relation.predicate, *relation.forms)]
    return {form[len(_auxiliaries(form))] for form in forms if form}


@functools.cache
def _participles(words: tuple[str, ...]) -> frozenset[str]:
    """Past participles that the verb of a form may have: "riding on" -> ridden. Some are no words; they do no harm."""
    verb = next(iter(words[len(_auxiliaries(words)) :]), "")
    bases = {
        verb,
        *(verb[: -len(end)] + new for end, new in (("s", ""), ("es", ""), ("ies", "y")) if verb.endswith(end)),
    }
    if verb.endswith("ing") and len(verb) > 4:
        stem = verb[:-3]
        bases = {stem, stem + "e"} | ({stem[:-1]} if stem[-2:-1] == stem[-1:] else set()) | {f"{stem[:-1]}ie"}
    made = {verb} if verb.endswith("ed") or verb in _IRREGULAR.values() else set[str]()
    for base in filter(None, bases):
        if base in _IRREGULAR:
            made.add(_IRREGULAR[base])
        made.add(base + "d" if base.endswith("e") else base[:-1] + "ied" if base.endswith("y") else base + "ed")
        made.add(base + base[-1] + "ed")
        if base.endswith("y"):
            made.add(base + "ed")
    return frozenset(made)


def _be(tokens: Sequence[str], start: int) -> int | None:
    """Where the "is being" in front of a participle begins, an adverb or two between them; None without one."""
    first = None
    for k in range(start - 1, max(start - 5, -1), -1):
        if tokens[k] in _BE:
            first = k
        elif first is not None or not (tokens[k].endswith("ly") or tokens[k] in {"also", "now", "not", "just"}):
            break
    return first


def _agent(tokens: Sequence[str], end: int) -> tuple[int, int] | None:
    """Behind "by", within a few words of a participle: where "by" ends, and the individual."""
    for k in range(end, min(end + 6, len(tokens))):
        if tokens[k] == "by":
            for at in range(k + 1, min(k + 6, len(tokens))):
                number = _individual(tokens[at])
                if number is not None:
                    return (k + 1, number) if _noun_phrase(tokens, at) == k + 1 else None
        if tokens[k] in _ENDS or _individual(tokens[k]) is not None:
            return None
    return None


def _object_follows(tokens: Sequence[str], end: int) -> bool:
    """Whether the words from ``end`` on are the noun phrase of an individual."""
    at = next((k for k in range(end, min(end + 5, len(tokens))) if _individual(tokens[k]) is not None), None)
    return at is not None and _noun_phrase(tokens, at) == end


def _noun_phrase(tokens: Sequence[str], at: int) -> int:
    """Where the phrase of the mention at ``at`` begins: at its article, if one stands up to three words before."""
    if tokens[at].endswith("^"):
        return at if not (at and tokens[at - 1] in _DETERMINERS) else at - 1
    for k in range(at - 1, max(at - 5, -1), -1):
        if tokens[k] in _DETERMINERS:
            return k
        if tokens[k] in _PLACES | _ENDS | _JOINTS | _AUXILIARIES | {"with", "of"} or _individual(tokens[k]) is not None:
            return k + 1 if _individual(tokens[k]) is None else at
    return at


def roles_by_name(tokens: Sequence[str], count: int, relation: Relation) -> tuple[int, ...] | None:
    """Roles that the text names: "the cat as the rider", "a cat on the left", "its mount is a bear"."""
    text, named = _joined(tokens), dict[int, int]()
    for number, role in enumerate(relation.roles):
        words = re.escape(_joined(tokens_of(role.name, ())))
        pattern = rf"{_MARK}(\d+)\^?(?: is)? (?:is|as|on|at|to|being)(?: (?:the|its|a|their))? {words}(?!\w)"
        reverse = rf"(?<!\w){words}(?: is| :| ,)(?: (?:the|its|a|an))? {_MARK}(\d+)"
        beside = rf"{_MARK}(\d+)\^? ,(?: (?:the|a))? {words}(?= [,;:.!?]| and | with | of |$)"  # "the cat (rider) and"
        for match in itertools.chain(*(re.finditer(form, text) for form in (pattern, reverse, beside))):
            named.setdefault(number, int(match[1]))
    left = [k for k in range(count) if k not in named.values()]
    missing = [number for number in range(len(relation.roles)) if number not in named]
    if named and len(missing) == len(left) == 1:
        named[missing[0]] = left[0]
    whole = len(named) == len(relation.roles) and len(set(named.values())) == len(named)
    return tuple(named[number] for number in range(len(relation.roles))) if whole else None


def roles_by_grammar(tokens: Sequence[str], match: Match, count: int) -> tuple[int, ...] | None:
    """Roles by the place of the individuals around the words of the relation."""
    roles = len(match.relation.roles)
    first = max((k + 1 for k in range(match.start) if tokens[k] in _ENDS), default=0)
    last = min((k for k in range(match.end, len(tokens)) if tokens[k] in _ENDS), default=len(tokens))
    before = [at for at in range(first, match.start) if _stands_alone(tokens, at)]
    after = [at for at in range(match.end, last) if _stands_alone(tokens, at)]
    if roles > 2:
        return _of_several(tokens, match, before, after) if count == roles else None
    subject, obj = (_of_passive if match.passive else _of_active)(tokens, match, before, after)
    if roles == 1:
        return None if subject is None else (subject,)
    if count == 2 and (subject is None) != (obj is None):
        subject, obj = (1 - obj, obj) if subject is None and obj is not None else (subject, 1 - (subject or 0))
    return (subject, obj) if subject is not None and obj is not None and subject != obj else None


def _of_several(
    tokens: Sequence[str], match: Match, before: Sequence[int], after: Sequence[int]
) -> tuple[int, ...] | None:
    """Three roles and more: in the order of the text, but for "X is carried by Y and Z" and "Y, Z with X between"."""
    first, then = ([n for at in side if (n := _individual(tokens[at])) is not None] for side in (before, after))
    if match.passive:
        order = then + first if len(first) == 1 else []
    elif len(then) == 1 and _starts_with_place(tokens, before):
        order = then + first  # "Between a cat and a dog sits a bear"
    elif len(first) > 1 and not then and tokens[_noun_phrase(tokens, before[-1]) - 1] == "with":
        order = first[-1:] + first[:-1]
    else:
        order = [number for token in tokens if (number := _individual(token)) is not None]
    order = list(dict.fromkeys(order))
    return tuple(order) if len(order) == len(match.relation.roles) else None


def _starts_with_place(tokens: Sequence[str], before: Sequence[int]) -> bool:
    start = _noun_phrase(tokens, before[0]) - 1 if before else -1
    return start >= 0 and tokens[start] in _PLACES and _starts_clause(tokens, start)


def _stands_alone(tokens: Sequence[str], at: int) -> bool:
    """Whether an individual is mentioned here, and not only as the owner of another: "the cat's bear"."""
    if _individual(tokens[at]) is None:
        return False
    owns = at + 1 < len(tokens) and tokens[at + 1] in ("'s", "’s")
    return not (owns and any(_individual(token) is not None for token in tokens[at + 2 : at + 4]))


_Pair = tuple[int | None, int | None]


def _of_passive(tokens: Sequence[str], match: Match, before: Sequence[int], after: Sequence[int]) -> _Pair:
    """Who does it, and to whom, of "X is being ridden by Y"."""
    others = [_individual(tokens[at]) for at in after]
    if match.agent is None:
        return None, _individual(tokens[_subject(tokens, match, before)]) if before else None
    if before:
        return match.agent, _individual(tokens[_subject(tokens, match, before)])
    return match.agent, next((number for number in others if number != match.agent), None)


def _of_active(tokens: Sequence[str], match: Match, before: Sequence[int], after: Sequence[int]) -> _Pair:
    """Who does it, and to whom, of "Y is riding X" and its like."""
    behind = list(dict.fromkeys(_individual(tokens[at]) for at in after))
    if not before:
        if tokens[match.start - 1 : match.start] in (["there"], ["here"]):
            return (behind[0] if behind else None), (behind[1] if len(behind) > 1 else None)
        if any(word.endswith("ing") for word in tokens[match.start : match.end]):
            return (behind[1] if len(behind) > 1 else None), (behind[0] if behind else None)
        return None, None
    if after and _fronted(tokens, before[-1], match):
        return behind[0], _individual(tokens[before[-1]])
    listed = len(before) > 1 and not after and _listed(tokens, before[-2], before[-1])
    if listed and (_RELATIVE | _PRONOUNS).isdisjoint(tokens[before[-1] : match.start]):
        return None, None  # but "a bear and the cat, who is riding it" tells
    at = _subject(tokens, match, before)
    subject = _individual(tokens[at])
    earlier = [_individual(tokens[k]) for k in before if _individual(tokens[k]) != subject]
    if at == before[-1] and earlier and _gapped(tokens, before[-2] if len(before) > 1 else at, at):
        return subject, earlier[-1]
    obj = next((number for number in behind if number != subject), None)
    return subject, obj if obj is not None else (earlier[-1] if earlier else None)


def _subject(tokens: Sequence[str], match: Match, before: Sequence[int]) -> int:
    """Which of the mentions in front of a predicate is its subject."""
    last = before[-1]
    if len(before) == 1:
        return last
    first_word = match.start
    while first_word and (tokens[first_word - 1] in _AUXILIARIES or tokens[first_word - 1].endswith("ly")):
        first_word -= 1
    neighbour = tokens[first_word - 1]
    if neighbour in _RELATIVE:  # "a dog that chases it"
        return last
    if neighbour in _JOINTS:  # "A cat meets a bear and rides it": still the cat
        return before[0]
    if neighbour in _PRONOUNS and first_word - 2 == last:  # "the cat it is chasing"
        return before[-2]
    phrase = _noun_phrase(tokens, last)
    preposition = tokens[phrase - 1] if phrase else ""
    between = tokens[before[-2] + 1 : phrase]
    if preposition in _PLACES and all(word in _PLACES | _OF_PLACE or word.endswith("ing") for word in between):
        return before[-2]  # "A cat on a bear, riding"
    finite = first_word < match.start or not tokens[match.start].endswith("ing")
    if preposition == "with" and finite:  # "A cat with a bear is riding it", not "A bear with a cat riding it"
        return before[-2]
    return last


def _starts_clause(tokens: Sequence[str], at: int) -> bool:
    return at == 0 or tokens[at - 1] in _JOINTS | _ENDS


def _fronted(tokens: Sequence[str], at: int, match: Match) -> bool:
    """Whether a mention in front of the predicate is a place: "On the back of the bear rides a cat"."""
    start = _noun_phrase(tokens, at) - 1
    if start < 0:
        return False
    if tokens[start] == "of":  # "on the back of", "on top of"
        start = next((k for k in range(start - 1, max(start - 5, -1), -1) if tokens[k] in _PLACES), -1)
    if start < 0 or tokens[start] not in _PLACES or not _starts_clause(tokens, start):
        return False
    between = [token for token in tokens[at + 1 : match.start] if token not in ("'s", "’s")]
    return "," not in between and len(between) <= 3


def _listed(tokens: Sequence[str], one: int, other: int) -> bool:
    """Whether two mentions only stand in a row: "A cat and a bear", "a cat, a bear"."""
    return tokens[one + 1 : one + 2] in (["and"], [","]) and _noun_phrase(tokens, other) == one + 2


def _gapped(tokens: Sequence[str], head: int, at: int) -> bool:
    """Whether a relative clause begins between two mentions: "the bear that the cat", "the bear the cat"."""
    between = tokens[head + 1 : at]
    return head + 1 == _noun_phrase(tokens, at) or not _RELATIVE.isdisjoint(between)
