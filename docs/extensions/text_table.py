"""A table of plain texts as nodes of docutils."""

from docutils import nodes


def table(head, rows, *, code=()):
    """Return a table; the cells of the columns in `code` are code."""
    rows = list(rows)
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in head), cols=len(head))
    group += nodes.thead("", row(head, ()))
    group += nodes.tbody("", *(row(cells, code) for cells in rows))
    return nodes.table("", group, classes=["docutils"])


def row(cells, code):
    """Return a row; an empty cell stays empty."""
    entries = (
        nodes.paragraph("", "", nodes.literal(cell, cell) if i in code else nodes.Text(cell)) if cell else None
        for i, cell in enumerate(cells)
    )
    return nodes.row("", *(nodes.entry("", *([entry] if entry else [])) for entry in entries))
