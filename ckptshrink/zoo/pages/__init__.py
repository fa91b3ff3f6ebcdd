"""What is shown in a browser: a page for each model, and an index of all.

The same record gives the same bytes: nothing on a page comes from a clock. Links are relative, so
that an output can be moved, or put on a web server, as it is.
"""

from ckptshrink.zoo.pages.index import index_lines
from ckptshrink.zoo.pages.report import report_page

__all__ = ["index_lines", "report_page"]
