"""A selection of tests: every value of every parameter of a test, and no more of their combinations than that takes."""


def each_value_once(items):
    """Return those of the tests that bring a value of a parameter which no case of the same test before them has, and
    the others.
    """
    kept, left, seen = [], [], set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        callspec = getattr(item, "callspec", None)  # of tests with parameters
        values = {(test, name, identity(value)) for name, value in callspec.params.items()} if callspec else {test}
        (left if values <= seen else kept).append(item)
        seen |= values
    return kept, left


def identity(value):
    """Return what tells a value of a parameter from others, `1` from `True` too."""
    try:
        hash(value)
    except TypeError:  # a list, or something with a list in it
        return id(value)
    return type(value), value
