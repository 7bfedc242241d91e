"""What mkdocs does beside building: docstrings name a class as [`Class`], a page shows the name alone."""

import re


def on_page_content(html: str, **_kwargs: object) -> str:
    """The page without the brackets of docstrings.

    >>> on_page_content("see [<code>EASE</code>]")
    'see <code>EASE</code>'
    """
    return re.sub(r"\[(<code>[^<]*</code>)\]", r"\1", html)
