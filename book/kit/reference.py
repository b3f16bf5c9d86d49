"""The library's public names as Markdown."""

import ast
import inspect
import re
import textwrap
from dataclasses import fields
from importlib import import_module

from hsnet.config import Config, paper
from hsnet.runs import markdown


def reference(name: str) -> str:
    """Markdown: what the library says of one of its public names, from the code and its docstrings.

    Raises:
        AttributeError: a name that is not public.
    """
    thing = getattr(import_module("hsnet"), name)
    if isinstance(thing, dict):
        return markdown(["name", "what"], [[f"`{k}`", inspect.getdoc(v).splitlines()[0]] for k, v in thing.items()])
    parts = [_signature(thing, name), _prose(inspect.getdoc(thing))]
    if name == "Config":
        of_paper = paper("pascal")
        rows = [
            [f"`{f.name}`", f"`{f.default!r}`", f"`{getattr(of_paper, f.name)!r}`", f.metadata["help"]]
            for f in fields(Config)
        ]
        parts.append(markdown(["setting", "default", "of `paper('pascal')`", "meaning"], rows))
    methods = {} if not inspect.isclass(thing) else vars(thing)
    for method, function in methods.items():
        function = getattr(function, "__func__", function)  # of a class method
        if inspect.isfunction(function) and not method.startswith("_") and inspect.getdoc(function):
            parts += [_signature(function, f"{name}.{method}"), _prose(inspect.getdoc(function))]
    return "\n\n".join(parts)


def _signature(thing, name: str) -> str:
    """As the source has it: with the shapes."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    if isinstance(definition, ast.ClassDef):
        inner = [part for part in definition.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        if not inner:  # a dataclass
            return f"```python\nclass {name}\n```"
        definition = inner[0]
    arguments = definition.args
    every = [*arguments.posonlyargs, *arguments.args]
    if every and every[0].arg in ("self", "cls"):
        (arguments.posonlyargs or arguments.args).pop(0)
    returns = f" -> {ast.unparse(definition.returns)}" if definition.returns else ""
    line = f"{name}({ast.unparse(arguments)}){returns}"
    if len(line) > 76:  # an argument a line; commas inside brackets belong to shapes
        depth, lines, start = 0, [], 0
        text = ast.unparse(arguments)
        for i, letter in enumerate(text):
            depth += (letter in "[(") - (letter in "])")
            if letter == "," and not depth:
                lines.append(text[start : i + 1].strip())
                start = i + 1
        lines.append(text[start:].strip() + ",")
        inner = "".join(f"    {one}\n" for one in lines)
        line = f"{name}(\n{inner}){returns}"
    return f"```python\n{line}\n```"


def _prose(docstring: str) -> str:
    """A docstring as Markdown: its sections as lists."""
    blocks = []
    for block in docstring.split("\n\n"):
        title, *lines = block.splitlines()
        if not re.fullmatch(r"(Args|Attributes|Returns|Raises):", title):
            blocks.append(block)
            continue
        entries: list[str] = []
        for line in lines:
            deeper = line.startswith("        ")
            if deeper or title == "Returns:":
                entries[-1:] = [" ".join([*entries[-1:], line.strip()])]
            else:
                entries.append(re.sub(r"^([\w, *]+):", r"`\1`:", line.strip()))
        blocks.append(f"**{title[:-1]}**\n\n" + "\n".join(f"- {entry}" for entry in entries))
    return "\n\n".join(blocks)
