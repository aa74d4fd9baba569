"""What users wrote (reasons, names, paths), made harmless for where it is shown. The one rule: a text of a user is never markup,
never a command of a pipeline's runner, and never a second line.
"""

from __future__ import annotations

import re

_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""Control characters and whatever some reader takes for the end of a line."""
_HIDDEN = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
"""What changes the order of reading, is half a character, or may not stand in XML."""
_MARKUP = re.compile(r"""[\\`*_\[\]<>&#|~!@$^{}"]|:(?=//)|(?<=www)\.""", re.IGNORECASE)
_BEGINS_A_BLOCK = re.compile(r"[-+=](?=[-=\s]|$)|[0-9](?=[0-9]*[.)](?:\s|$))")
_BACKTICKS = re.compile("`+")
_LINE_COMMAND = re.compile(r"(^|[\r\n])(\s*):(?=:)")  # .NET's lines end at \r, too
_ANYWHERE_COMMAND = re.compile(r"##(?=[\w.]*\[)")
_NOT_IN_DOTENV = re.compile(r"[^A-Za-z0-9._:/+-]+")
LONGEST_DOTENV_VALUE = 200


def one_line(text: str) -> str:
    """The text on one line, without control characters and without what only pretends to be something else."""
    return _HIDDEN.sub("\ufffd", _BREAKS.sub(" ", text)).strip()


def indented(text: str) -> str:
    """As `one_line`, with the spaces that it begins with."""
    return " " * (len(text) - len(text.lstrip(" "))) + one_line(text)


def shortened(text: str, longest: int) -> str:
    """At most so many characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def markdown_text(text: str) -> str:
    """As prose or in a cell of a table. What has a meaning is written by its number, which all readers of Markdown agree on."""
    text = one_line(text)
    begin = _by_number(found) if (found := _BEGINS_A_BLOCK.match(text)) else ""
    return begin + _MARKUP.sub(_by_number, text[1:] if begin else text)


def _by_number(found: re.Match[str]) -> str:
    # Behind a mention or a reference to an issue stands a space of no width: GitHub looks for those in what was rendered.
    after = "\u200b" if found.group() in {"@", "#"} else ""
    return f"&#{ord(found.group())};{after}"


def markdown_code(text: str) -> str:
    """As code in one line; what no code can hold in a cell is prose."""
    text = one_line(text)
    if not text or "|" in text:
        return markdown_text(text)
    fence = "`" * (max(map(len, _BACKTICKS.findall(text)), default=0) + 1)
    gap = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{gap}{text}{gap}{fence}"


def command_data(text: str) -> str:
    """The message of a workflow command, as GitHub's runner reads it back."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """The value of a property of a workflow command."""
    return command_data(text).replace(":", "%3A").replace(",", "%2C")


def no_command(text: str) -> str:
    """Plain output in which a runner finds no command: `::name::` at the start of a line, `##[name]` or `##vso[name]` anywhere."""
    return _ANYWHERE_COMMAND.sub("# #", _LINE_COMMAND.sub(r"\1\2: ", text))


def no_command_in_json(document: str) -> str:
    """The same JSON; only in a text of it can there be two `#`."""
    return _ANYWHERE_COMMAND.sub(r"#\\u0023", document)


def dotenv_value(text: str) -> str:
    """What GitLab takes as the value of a variable, and does not expand: it replaces `$NAME` in it."""
    return _NOT_IN_DOTENV.sub("_", one_line(text))[:LONGEST_DOTENV_VALUE]
