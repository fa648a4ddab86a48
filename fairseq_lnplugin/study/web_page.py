"""RESULTS.html: the page of RESULTS.md with its figures inside, so that one file opens anywhere, without a network."""

import base64
import re

from markdown_it import MarkdownIt

#: Readable on a phone (wide tables scroll in themselves), in grey and in print. Nothing is loaded from outside,
#: and the policy in the page's head would not let it be.
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; }}
body {{ max-width: 70rem; margin: 0 auto; padding: 0 1rem 3rem; }}
h1, h2 {{ line-height: 1.2; overflow-wrap: anywhere; }}
h2 {{ margin-top: 2.5rem; border-top: 1px solid #bbb; padding-top: 1rem; }}
img {{ max-width: 100%; height: auto; }}
code {{ font-size: 0.85em; overflow-wrap: anywhere; }}
pre {{ background: #f3f3f3; padding: 0.7rem; white-space: pre-wrap; }}
blockquote {{ margin: 1rem 0; padding: 0.1rem 1rem; border-left: 4px solid #111; background: #f3f3f3; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ border-bottom: 1px solid #bbb; padding: 0.25rem 0.6rem; text-align: left; vertical-align: top; }}
th {{ border-bottom: 2px solid #111; }}
td {{ white-space: nowrap; }}
td:last-child {{ white-space: normal; min-width: 8rem; }}
@media print {{
  @page {{ size: A4 landscape; margin: 12mm; }}
  body {{ max-width: none; padding: 0; font-size: 10pt; }}
  .table {{ overflow: visible; }}
  table {{ font-size: 7pt; }}
  th, td, td:last-child {{ padding: 1pt 3pt; white-space: normal; overflow-wrap: anywhere; min-width: 0; }}
  img {{ max-height: 140mm; }}
  tr, img {{ break-inside: avoid; }}
  h2 {{ break-after: avoid; }}
}}
</style>
</head>
<body>
"""


def web_page(text, files):
    """The HTML page of a Markdown text as a str.

    ``files``: the bytes of its figures by name; each link ``figures/NAME.svg`` around its PNG becomes the SVG itself.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    body = re.sub(
        r'<a href="(figures/[\w.-]+\.svg)"><img src="[^"]*" alt="([^"]*)" /></a>',
        lambda match: f'<img src="data:image/svg+xml;base64,{base64.b64encode(files[match[1]]).decode()}" alt="{match[2]}">',
        body,
    )
    title = re.search(r"<h1>(.*?)</h1>", body)[1]
    return HEAD.format(title=title) + body + "</body>\n</html>\n"
