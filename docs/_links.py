"""A griffe extension for the site: public names in backticks in docstrings become links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from griffe import Extension

# A name in single backticks. Double backticks mean code.
NAME = re.compile(r"(?<!`)`((?:\w+\.)*\w+)(\(\))?`(?!`)")

# Modules with public names. The first one that has the name counts.
MODULES = ("", "sync", "server", "remote", "ray", "testing", "pytest_plugin")


class LinkPublicNames(Extension):
    """Links the public names in docstrings to their entries."""

    def on_package(self, *, pkg: Any, **kwargs: Any) -> None:
        """Add links to all docstrings of the package."""
        for obj in _all_of(pkg):
            if obj.docstring is not None:
                obj.docstring.value = NAME.sub(
                    lambda match, obj=obj: _linked(pkg, obj, match), obj.docstring.value
                )


def _all_of(obj: Any) -> Iterator[Any]:
    yield obj
    for member in list(obj.members.values()):
        if not member.is_alias:
            yield from _all_of(member)


def _linked(package: Any, obj: Any, match: re.Match[str]) -> str:
    name, _, attribute = match[1].removeprefix(f"{package.name}.").partition(".")
    if path := _public(package, name, attribute):
        return f"[{match[0]}][{path}]"
    owner = obj if obj.is_class else obj.parent
    is_member = owner is not None and owner.is_class and not attribute and obj.name != name
    path = _public(package, owner.name, name) if is_member else None
    return f"[{match[0]}][{path}]" if path else match[0]


def _public(package: Any, name: str, attribute: str) -> str | None:
    for module in MODULES:
        place = package[module] if module else package
        if name in MODULES and name == module and attribute:
            return _public_in(place, *attribute.partition(".")[::2])
        if path := _public_in(place, name, attribute):
            return path
    return None


def _public_in(place: Any, name: str, attribute: str) -> str | None:
    if name not in (place.exports or ()):
        return None
    obj = place[name]
    obj = obj.final_target if obj.is_alias else obj
    if not attribute:
        return f"{place.path}.{name}"
    is_known = obj.is_class and attribute in obj.all_members and not attribute.startswith("_")
    return f"{place.path}.{name}.{attribute}" if is_known else None
