"""Reading an HTML page as a person would."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a reader of the page depends on: balanced tags, pictures with their texts, addresses, visible text."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.addresses, self.ids, self.text = [], [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img":
            self.images.append(values)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data + " "
