"""Sphinx: an inline script stands once on a page. Where extensions add theirs each time they are asked, as sphinx-thebe
does, a browser reports constants that are declared twice."""


def _once(app, pagename, templatename, context, doctree):
    seen, scripts = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if body is None or body not in seen:
            scripts.append(script)
        seen.add(body)
    context["script_files"] = scripts


def setup(app):
    app.connect("html-page-context", _once, priority=900)  # after those that add
    return {"parallel_read_safe": True, "parallel_write_safe": True}
