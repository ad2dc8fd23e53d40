"""Stop strings: which part of a growing text can be shown, and where the text ends."""

from collections.abc import Iterable


def validate_stop_strings(stop: object) -> tuple[str, ...]:
    """Return the *stop* argument as a tuple. Raises TypeError or ValueError for what cannot be."""
    if isinstance(stop, str):
        stop = [stop]
    # Bytes are an iterable too: of int, which would make for a puzzling message below.
    if not isinstance(stop, Iterable) or isinstance(stop, bytes | bytearray):
        raise TypeError(f"stop must be a str or an iterable of str, not {type(stop).__name__}")
    strings: list[str] = []
    for string in stop:
        if not isinstance(string, str):
            raise TypeError(f"a stop string must be a str, not {type(string).__name__}")
        if not string:
            raise ValueError(
                "a stop string must not be empty: it would match at once; leave it out"
            )
        strings.append(string)
    return tuple(strings)


# The trie of the strings with the fallbacks of Aho and Corasick ("Efficient string matching",
# CACM 1975). A node stands for the prefix on the way to it. The invariant, for any text walked
# from the root (node 0): the node reached is the longest suffix of the text that is a prefix of
# some string. A character takes the walk at most one level down and each fallback at least one
# up, so there are fewer fallbacks than characters, for any number of any strings.
#
# Nodes are indices into lists, not objects: objects that point at each other would leave every
# request's trie to the garbage collector, and a copy of a deep one would overflow the stack.
class _Automaton:
    def __init__(self, strings: Iterable[str]) -> None:
        self.children: list[dict[str, int]] = [{}]
        self.fallback = [0]
        self.depth = [0]
        self.on_the_way_to = [""]  # one of the strings that have this prefix
        self.complete: list[str | None] = [None]  # the longest string that ends here

        for string in strings:
            node = 0
            for depth, character in enumerate(string, 1):
                node = self.children[node].setdefault(character, len(self.children))
                if node == len(self.children):
                    self.children.append({})
                    self.fallback.append(0)
                    self.depth.append(depth)
                    self.on_the_way_to.append(string)
                    self.complete.append(None)
            self.complete[node] = string

        breadth_first = [*self.children[0].values()]  # so shorter ones, the fallbacks, come first
        for node in breadth_first:
            for character, child in self.children[node].items():
                self.fallback[child] = self.step(self.fallback[node], character)
                self.complete[child] = self.complete[child] or self.complete[self.fallback[child]]
                breadth_first.append(child)

    def step(self, node: int, character: str) -> int:
        while node and character not in self.children[node]:
            node = self.fallback[node]
        return self.children[node].get(character, 0)

    def occurs_in(self, text: str) -> bool:
        node = 0
        for character in text:
            node = self.step(node, character)
            if self.complete[node] is not None:
                return True
        return False


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
        automaton = _Automaton(strings)
        # One that has another inside, ending before its own last character, cannot match, except
        # where the other is in the text before. It has to go: it would hold text back for nothing.
        possible = [string for string in strings if after or not automaton.occurs_in(string[:-1])]
        if len(possible) < len(strings):
            automaton = _Automaton(possible)
        self._automaton = automaton
        self._node = 0
        for character in after:
            self._node = automaton.step(self._node, character)
        self.matched = None

    def __bool__(self) -> bool:
        """Whether there are any stop strings at all."""
        return bool(self._automaton.children[0])

    @property
    def held(self) -> str:
        """The text held back: the longest end of the text that can still become a match."""
        node = self._node
        return self._automaton.on_the_way_to[node][: self._automaton.depth[node]]

    def feed(self, text: str) -> str:
        """Take more text, and return what can be shown now.

        When a stop string is completed, that is the text before it, and `matched` is set; all text
        after the stop string, in this call and later, is dropped.
        """
        if self.matched is not None:
            return ""
        automaton, before = self._automaton, self._node
        node = before
        fed = len(text)
        for position, character in enumerate(text, 1):
            node = automaton.step(node, character)
            if (match := automaton.complete[node]) is not None:
                self.matched = match
                fed = position
                break
        # Counted, not cut out of `held + text`: a long text held back is not copied every time.
        held = automaton.depth[before]
        shown = held + fed - automaton.depth[node]
        self._node = node if self.matched is None else 0
        return automaton.on_the_way_to[before][: min(shown, held)] + text[: max(shown - held, 0)]

    def flush(self) -> str:
        """Return the text held back, when the text ends without a match."""
        held = self.held
        self._node = 0
        return held
