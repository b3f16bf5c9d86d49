"""The table of what the fault-injection harness, `tests/reliability.py`, counted."""

from hsnet.runs import markdown

KILLS = {"random": "killed at a random instant", "inside_writes": "killed inside a write"}


def table(result: dict) -> str:
    """Markdown: what was tried, how often, and how often it passed.

    Args:
        result: what `data/reliability.json` holds.
    """
    rows = []

    def row(what, tried, well, how):
        rows.append([what, str(tried), str(int(well)), how])

    if found := result.get("kills"):
        same = f"{found['equal_runs']} of {found['runs']} training runs ended bit for bit as an uninterrupted one"
        for how, text in KILLS.items():
            row(text, *found[how].values(), same)
    if found := result.get("pictures"):
        how = f"{found['read']} could be read, {found['refused_by_name']} were refused by name"
        row("damaged images", found["tried"], found["read"] + found["refused_by_name"], how)
    if found := result.get("inputs"):
        how = f"{found['command_lines']} command lines, {found['config_files']} config files: refused by name, no traceback"
        row("bad inputs", found["tried"], found["refused_by_name"], how)
    return markdown(["what", "tried", "passed", "what happened"], rows)
