"""The pages: the texts in Markdown that the repository has for its readers."""


def pages_of(root):
    """Return the paths of those at the root and in the folder docs, without what a build of the site has copied."""
    return sorted([*root.glob("*.md"), *(path for path in (root / "docs").rglob("*.md") if "_build" not in path.parts)])
