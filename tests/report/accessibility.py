"""Rules of accessible pages, after those of axe-core that ours could break, and the contrast of two colors."""

import re
from html.parser import HTMLParser

VOID = ("meta", "link", "img", "br", "source", "input")
HEADINGS = ("h1", "h2", "h3", "h4")
ENOUGH_CONTRAST = 4.5


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.faults, self.open, self.headings, self.landmarks, self.names = [], [], [], [], []
        self.language = self.title = ""

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in VOID:
            self.open.append((tag, given, []))
        if tag in HEADINGS:
            level = int(tag[1])
            if level > (self.headings[-1] if self.headings else 0) + 1:
                self.faults.append(f"{tag} comes after h{self.headings[-1:]}")
            self.headings.append(level)
        if tag == "img" and "alt" not in given:
            self.faults.append("a picture has no alternative text")
        if tag == "html":
            self.language = given.get("lang", "")
        if tag in ("main", "header", "nav"):
            self.landmarks.append(tag)
        if given.get("role") in ("region", "group", "dialog", "img") and not given.get("aria-label"):
            self.faults.append(f"a {given['role']} has no name")
        # What may be wider than a phone scrolls, and is reached by the keyboard.
        if (tag in ("pre", "picture") or given.get("class") == "scroll") and given.get("tabindex") != "0":
            self.faults.append(f"{tag} scrolls, and is out of the keyboard's reach")
        for _, _, words in self.open:
            words.append(given.get("alt", ""))

    def handle_data(self, data):
        for tag, _, words in self.open:
            words.append(data)
            if tag == "title":
                self.title += data

    def handle_endtag(self, tag):
        opened, given, words = self.open.pop()
        assert opened == tag, (opened, tag)
        named = given.get("aria-label") or "".join(words).strip()
        if tag in ("button", "a", "summary", *HEADINGS) and not named:
            self.faults.append(f"a {tag} has no name")


def faults(page):
    """What is wrong with a page, in words; empty for a good one."""
    reader = _Page()
    reader.feed(page)
    found = reader.faults
    found += [] if reader.headings.count(1) == 1 else [f"{reader.headings.count(1)} headings of the first level"]
    found += [] if reader.landmarks.count("main") == 1 else ["not one main part"]
    found += [] if reader.language and reader.title.strip() else ["no language or title"]
    ids = re.findall(r'\sid="(.*?)"', page)
    found += [] if len(set(ids)) == len(ids) else ["an id is there twice"]
    return found


def contrast(one, other):
    """Ratio of the relative luminances of two colors such as "#fff" or "#1c1d1f", 1 to 21.

    Source: WCAG 2.2, definition of contrast ratio.
    """
    bright, dark = sorted((_luminance(color) for color in (one, other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(color):
    digits = color.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
