"""Stop strings: which part of a growing text can be shown, and where the text ends."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice


class StopSet(tuple[str, ...]):
    """Stop strings that have been checked, with the automaton that finds them.

    The automaton is built when it is first needed, and once: the answers to one request share it.
    """

    @cached_property
    def automaton(self) -> _Automaton:
        """It takes a second for a million characters: have it built in a worker thread."""
        automaton = self.automaton_of_all
        # One that has another inside, ending before its own last character, cannot match. It has
        # to go: it would hold text back for nothing.
        possible = [each for each in self if not automaton.occurs_in(each, len(each) - 1)]
        return automaton if len(possible) == len(self) else _Automaton(possible)

    @cached_property
    def automaton_of_all(self) -> _Automaton:
        """The same for a text that goes on from another: the other can hold a part of a match."""
        return _Automaton(tuple(self))  # not this object: a cycle, for the garbage collector


def validate_stop_strings(stop: object, argument: str = "stop") -> StopSet:
    """Return an *argument* as a set. Raises TypeError or ValueError if it is not one."""
    if isinstance(stop, StopSet):
        return stop
    if isinstance(stop, str):
        stop = [stop]
    # Bytes are an iterable too: of int, which would make for a puzzling message below.
    if not isinstance(stop, Iterable) or isinstance(stop, bytes | bytearray):
        kind = type(stop).__name__
        raise TypeError(f"{argument} must be a str or an iterable of str, not {kind}")
    strings: list[str] = []
    for string in stop:
        if not isinstance(string, str):
            raise TypeError(f"a stop string must be a str, not {type(string).__name__}")
        if not string:
            raise ValueError(
                "a stop string must not be empty: it would match at once; leave it out"
            )
        strings.append(string)
    return StopSet(strings)


# The trie of the strings with the fallbacks of Aho and Corasick ("Efficient string matching",
# CACM 1975). A node stands for the prefix on the way to it. The invariant, for any text walked
# from the root (node 0): the node reached is the longest suffix of the text that is a prefix of
# some string. A character takes the walk at most one level down and each fallback at least one
# up, so there are fewer fallbacks than characters, for any number of any strings.
#
# It is lean, because strings can be long: 20 bytes for a character. Nodes are indices into arrays.
# (Objects that point at each other would also leave every request's trie to the garbage collector.)
# Most nodes have one child, which was added right after them: it is the next index, and only its
# character is stored. All other edges are in a dict: a string adds one of them at most.
class _Automaton:
    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        size = 1 + sum(map(len, strings))
        self._next_code = array("I", [_NO_CODE]) * size  # what leads to the next index
        self._branches: dict[int, int] = {}  # from a node and a character to any other index
        self._fallback = array("I", [0]) * size
        self._owner = array("I", [0]) * size  # one of the strings that have this prefix: its index
        self.complete = array("I", [0]) * size  # the longest string that ends here: its index and 1
        self.depth = array("I", [0]) * size
        nodes = 1
        for index, string in enumerate(strings):
            nodes = self._add(index, string, nodes)
        for each in (self._next_code, self._fallback, self._owner, self.complete, self.depth):
            del each[nodes:]  # prefixes that strings share
        self._add_fallbacks()
        self.first_characters = frozenset(string[0] for string in strings)

    def __len__(self) -> int:
        return len(self._strings)

    def step(self, node: int, code: int) -> int:
        """The node after one more character, given by its code point."""
        while self._next_code[node] != code:
            child = self._branches.get(node << _CODE_BITS | code, 0)
            if child or not node:
                return child
            node = self._fallback[node]
        return node + 1

    def match(self, node: int) -> str:
        """The longest string that ends at a node of `complete`."""
        return self._strings[self.complete[node] - 1]

    def prefix(self, node: int) -> str:
        """The text that a node stands for."""
        return self._strings[self._owner[node]][: self.depth[node]] if node else ""

    def occurs_in(self, text: str, end: int) -> bool:
        """Whether one of the strings is in ``text[:end]``."""
        node = 0
        for code in map(ord, islice(text, end)):
            node = self.step(node, code)
            if self.complete[node]:
                return True
        return False

    def _add(self, index: int, string: str, nodes: int) -> int:
        """Add a string to a trie of this many nodes. Returns how many it has then."""
        node = 0
        for depth, code in enumerate(map(ord, string), 1):
            key = node << _CODE_BITS | code
            child = node + 1 if self._next_code[node] == code else self._branches.get(key, 0)
            if not child:
                child, nodes = nodes, nodes + 1
                self._owner[child], self.depth[child] = index, depth
                if child == node + 1:
                    self._next_code[node] = code
                else:
                    self._branches[key] = child
            node = child
        self.complete[node] = index + 1
        return nodes

    def _add_fallbacks(self) -> None:
        """Breadth first: a fallback is shorter, and has its own before it is needed."""
        branches: dict[int, list[tuple[int, int]]] = {}
        for key, child in self._branches.items():
            branches.setdefault(key >> _CODE_BITS, []).append((key & _CODE_MASK, child))
        nodes = deque([0])
        while nodes:
            node = nodes.popleft()
            children = branches.get(node, [])
            if self._next_code[node] != _NO_CODE:
                children = [(self._next_code[node], node + 1), *children]
            for code, child in children:
                fallback = self.step(self._fallback[node], code) if node else 0
                self._fallback[child] = fallback
                self.complete[child] = self.complete[child] or self.complete[fallback]
                nodes.append(child)


_CODE_BITS = 21  # of a code point
_CODE_MASK = 2**_CODE_BITS - 1
_NO_CODE = _CODE_MASK  # no character has it


# The node is the whole memory. Its prefix is all the text that is held back: everything before it
# has been shown, and can no longer be part of a match.
class StopStrings:
    """Finds the first of several stop strings in a text that arrives in pieces.

    The match is the one that ends first, since generation stops there; of several that end at
    the same character it is the longest, so that no part of any of them is shown. Both are
    properties of the text alone: neither how it was cut into pieces nor the order of the stop
    strings changes what is shown or which one is reported. (So of `"abcd"` and `"bc"` only the
    second can ever match, and the `"a"` before it is ordinary text.) Characters are compared as
    they are, without case folding or Unicode normalisation.

    Args:
        stop: the strings.
        after: the text before. A match can begin in it, but not end in it.
    """

    matched: str | None
    """The stop string that ended the text; None until then."""

    def __init__(self, stop: str | Iterable[str] = (), *, after: str = "") -> None:
        strings = validate_stop_strings(stop)
        self._automaton = automaton = strings.automaton_of_all if after else strings.automaton
        self._node = 0
        for code in map(ord, after):
            self._node = automaton.step(self._node, code)
        self.matched = None

    def __bool__(self) -> bool:
        """Whether there are any stop strings at all."""
        return bool(self._automaton)

    @property
    def held(self) -> str:
        """The text held back: the longest end of the text that can still become a match."""
        return self._automaton.prefix(self._node)

    def feed(self, text: str) -> str:
        """Take more text, and return what can be shown now.

        When a stop string is completed, that is the text before it, and `matched` is set; all text
        after the stop string, in this call and later, is dropped.
        """
        if self.matched is not None:
            return ""
        automaton, before = self._automaton, self._node
        if not before and automaton.first_characters.isdisjoint(text):  # as nearly always
            return text
        node = before
        fed = len(text)
        for position, code in enumerate(map(ord, text), 1):
            node = automaton.step(node, code)
            if automaton.complete[node]:
                self.matched = automaton.match(node)
                fed = position
                break
        # Counted, not cut out of `held + text`: a long text held back is not copied every time.
        held = automaton.depth[before]
        shown = held + fed - automaton.depth[node]
        self._node = node if self.matched is None else 0
        return automaton.prefix(before)[: min(shown, held)] + text[: max(shown - held, 0)]

    def flush(self) -> str:
        """Return the text held back, when the text ends without a match."""
        held = self.held
        self._node = 0
        return held
