"""Static MathML: a formula becomes markup that browsers draw by themselves, without a script or a font."""

from docutils import nodes
from latex2mathml.converter import convert


def draw_inline(translator, node):
    """Write a formula within a line."""
    translator.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def draw_block(translator, node):
    """Write a formula of its own, in a box that scrolls where the screen is narrow."""
    translator.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


def setup(app):
    """Make this the renderer called "mathml"."""
    app.add_html_math_renderer("mathml", (draw_inline, None), (draw_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
