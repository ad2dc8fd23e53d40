"""The conversation of a chat, and the commands that change it: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .chat_pictures import Part, completed_path
from .chat_settings import SETTINGS, changed
from .terminal import pluralized

__all__ = ["Commands", "Content", "Conversation"]

Content = str | list[Part]  # of a message


@dataclass
class Conversation:
    """What the next request is made of: earlier messages, settings, pictures."""

    system: str | None
    # Messages: each question, and after it its answer.
    turns: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    pictures: list[Part] = field(default_factory=list)  # of the next question

    def question(self, text: str) -> Content:
        """The next question, with its pictures."""
        return [*self.pictures, {"type": "text", "text": text}] if self.pictures else text

    def messages_with(self, question: Content) -> list[dict[str, Any]]:
        """The messages of a request for an answer to *question*."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *self.turns, {"role": "user", "content": question}]

    def add(self, question: Content, answer: str) -> None:
        """Keep a question that has been answered. The next question does not have its pictures."""
        self.turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        parts = [] if isinstance(question, str) else question
        self.pictures = [each for each in self.pictures if all(each is not part for part in parts)]

    def shown_pictures(self) -> str:
        """How many pictures the next question has."""
        count = len(self.pictures)
        if not count:
            return "The next question has no picture."
        return (
            f"The next question has {pluralized(count, 'picture')}. /image alone removes pictures."
        )


@dataclass(frozen=True)
class _Command:
    usage: str
    help: str
    run: Callable[[str], str]  # called with the text after the name; returns what to show


class Commands:
    """Runs commands on a conversation.

    Args:
        conversation: what they change.
        ask: asks a question in it.
        picture: makes the part of a message from the path of a picture. Raises ValueError or
            ImportError if it cannot.
    """

    def __init__(
        self,
        conversation: Conversation,
        ask: Callable[[Content], object],
        picture: Callable[[str], Part],
    ) -> None:
        self._conversation = conversation
        self._ask = ask
        self._picture = picture
        self.has_ended: bool = False
        self._commands = {
            "/new": _Command("/new", "start a new conversation", self._new),
            "/retry": _Command("/retry", "ask for the last answer again", self._retry),
            "/image": _Command(
                "/image [PATH]",
                "add a picture to the next question, or remove its pictures",
                self._image,
            ),
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
        """Run a command. Returns what to show to the user, or an empty text.

        Raises:
            ValueError: there is no such command, or its argument is wrong.
            ImportError: a package that it needs is not installed.
        """
        name, _, argument = line.partition(" ")
        command = self._commands.get(self._aliases.get(name, name))
        if command is None:
            raise ValueError(
                f"there is no command {name}: /help lists them; "
                "a question that begins with a slash needs a space before it"
            )
        argument = argument.strip()
        if argument and command.usage == name:
            raise ValueError(f"{name} takes nothing after it")
        return command.run(argument)

    def completions(self, line: str) -> list[str]:
        """What a line that begins as *line* can be: a command, a setting, the path of a picture."""
        name, space, argument = line.partition(" ")
        if not space:
            found = [each for each in self._commands if each.startswith(name)]
            return [f"{each} " if " " in self._commands[each].usage else each for each in found]
        if name == "/image":
            return [f"{name} {path}" for path in completed_path(argument)]
        if name == "/set":
            return [f"{name} {each} " for each in SETTINGS if each.startswith(argument)]
        return []

    def _new(self, _: str) -> str:
        self._conversation.turns = []
        self._conversation.pictures = []
        return "A new conversation."

    def _retry(self, _: str) -> str:
        before = self._conversation.turns
        if not before:
            raise ValueError("there is no answer yet")
        self._conversation.turns = before[:-2]
        self._ask(before[-2]["content"])
        if len(self._conversation.turns) < len(before):  # no new answer: keep the last one
            self._conversation.turns = before
        return ""

    def _image(self, path: str) -> str:
        if path:
            self._conversation.pictures.append(self._picture(path))
        else:
            self._conversation.pictures = []
        return self._conversation.shown_pictures()

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
        width = max(len(each.usage) for each in self._commands.values())
        lines = [f"{each.usage:<{width}}  {each.help}" for each in self._commands.values()]
        lines.append(f"{'Ctrl-C':<{width}}  stop an answer, or clear the line; twice: leave")
        return "\n".join(lines)

    def _exit(self, _: str) -> str:
        self.has_ended = True
        return ""
