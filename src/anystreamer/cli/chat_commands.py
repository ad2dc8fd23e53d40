"""The commands of the chat: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .chat_settings import SETTINGS, changed

__all__ = ["Commands", "Conversation"]


@dataclass
class Conversation:
    """What the next question goes with."""

    system: str | None
    turns: list[dict[str, str]] = field(default_factory=list)  # questions, each with its answer
    settings: dict[str, Any] = field(default_factory=dict)

    def asking(self, question: str) -> list[dict[str, str]]:
        """The messages of a request."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *self.turns, {"role": "user", "content": question}]

    def add(self, question: str, answer: str) -> None:
        """Keep a question that has been answered."""
        self.turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]


@dataclass(frozen=True)
class _Command:
    form: str
    help: str
    run: Callable[[str], str]  # with what follows the name; returns what to say


class Commands:
    """Runs commands on a conversation.

    Args:
        conversation: what they change.
        ask: asks a question in it.
    """

    def __init__(self, conversation: Conversation, ask: Callable[[str], object]) -> None:
        self._conversation = conversation
        self._ask = ask
        self.has_ended: bool = False
        self._commands = {
            "/new": _Command("/new", "start a new conversation", self._new),
            "/retry": _Command("/retry", "ask for the last answer again", self._retry),
            "/system": _Command(
                "/system [TEXT]", "set the system prompt, or remove it", self._system
            ),
            "/set": _Command(
                "/set [NAME [VALUE]]",
                f"set {', '.join(SETTINGS)}; without a value, leave it to the model",
                self._set,
            ),
            "/help": _Command("/help", "list the commands", self._help),
            "/exit": _Command("/exit", "leave, as Ctrl-D does", self._exit),
        }
        self._aliases = {"/clear": "/new", "/quit": "/exit"}

    def run(self, line: str) -> str:
        """Run one. Returns what to tell the user, or an empty text.

        Raises:
            ValueError: there is no such command, or its argument is wrong.
        """
        name, _, argument = line.partition(" ")
        command = self._commands.get(self._aliases.get(name, name))
        if command is None:
            raise ValueError(
                f"there is no command {name}: /help lists them; "
                "a question that begins with a slash needs a space before it"
            )
        argument = argument.strip()
        if argument and command.form == name:
            raise ValueError(f"{name} takes nothing after it")
        return command.run(argument)

    def _new(self, _: str) -> str:
        self._conversation.turns = []
        return "A new conversation."

    def _retry(self, _: str) -> str:
        before = self._conversation.turns
        if not before:
            raise ValueError("there is no answer yet")
        self._conversation.turns = before[:-2]
        self._ask(before[-2]["content"])
        if len(self._conversation.turns) < len(before):  # there is no other one
            self._conversation.turns = before
        return ""

    def _system(self, text: str) -> str:
        self._conversation.system = text or None
        return "The system prompt is set." if text else "There is no system prompt."

    def _set(self, argument: str) -> str:
        name, _, text = argument.partition(" ")
        if name:
            settings = changed(self._conversation.settings, name, text.strip())
            self._conversation.settings = settings
        given = [f"{name} {value}" for name, value in self._conversation.settings.items()]
        return f"Settings: {', '.join(given) or 'the defaults of the model'}."

    def _help(self, _: str) -> str:
        width = max(len(each.form) for each in self._commands.values())
        lines = [f"{each.form:<{width}}  {each.help}" for each in self._commands.values()]
        lines.append(f"{'Ctrl-C':<{width}}  stop an answer, or clear the line; twice: leave")
        return "\n".join(lines)

    def _exit(self, _: str) -> str:
        self.has_ended = True
        return ""
