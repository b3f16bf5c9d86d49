"""Sphinx, for these pages: no script twice on one, line breaks in code, and tables in the reference that come from the code.

Where extensions add an inline script each time they are asked, as sphinx-thebe does, a browser reports constants that are
declared twice.
"""

import inspect
import re
from dataclasses import fields

from tabulate import tabulate

import hsnet


def _once(app, pagename, templatename, context, doctree):
    seen, scripts = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if body is None or body not in seen:
            scripts.append(script)
        seen.add(body)
    context["script_files"] = scripts


def _code(app, pagename, templatename, context, doctree):
    """Line breaks of inline code: none inside an option; in the tables of the reference also after an underscore."""
    body = context.get("body")
    if not body:
        return
    body = body.replace('<span class="pre">--', '<span class="pre option">--')
    if pagename == "book/api":

        def breakable(table):
            return re.sub(r"(?<=class=\"pre\">)[^<]+", lambda name: name[0].replace("_", "_<wbr>"), table[0])

        body = re.sub(r"<table.*?</table>", breakable, body, flags=re.DOTALL)
    context["body"] = body


def _options(text):
    """A help text whose options are marked as code, so that their dashes remain."""
    return re.sub(r"--[a-z][\w-]*(?: [A-Z]+\b)?", r"``\g<0>``", text)


def _tables(app, what, name, thing, options, lines):
    if name == "hsnet.Config":
        of_paper = hsnet.paper("pascal")
        header = ["setting", "default", "PASCAL-5i", "meaning"]
        rows = [
            [f"``{f.name}``", f"``{f.default!r}``", f"``{getattr(of_paper, f.name)!r}``", _options(f.metadata["help"])]
            for f in fields(hsnet.Config)
        ]
    elif name == "hsnet.BENCHMARKS":
        header, rows = ["name", "what"], [[f"``{k}``", inspect.getdoc(v).splitlines()[0]] for k, v in thing.items()]
        lines.clear()
    else:
        return
    lines += ["", *tabulate(rows, header, tablefmt="grid", disable_numparse=True).splitlines(), ""]


def setup(app):
    app.connect("html-page-context", _once, priority=900)  # after those that add
    app.connect("html-page-context", _code)
    app.connect("autodoc-process-docstring", _tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
