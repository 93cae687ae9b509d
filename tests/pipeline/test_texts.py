"""The texts of items."""

import pytest

from common.errors import UserError
from pipeline.texts import check_fields, fields, fill

ITEM = {"title": "Salt &amp; Pepper “Mill”", "brand": "Alder", "categories": None, "note": " "}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{title}", "Salt & Pepper “Mill”"),
        ("{title}. {brand}. {categories}", "Salt & Pepper “Mill”. Alder"),
        ("{title} ({categories}) by {brand}.", "Salt & Pepper “Mill”) by Alder."),
        ("{title} by {note}.", "Salt & Pepper “Mill”."),
        ("{categories}: {note}, {brand} {title}", "Alder Salt & Pepper “Mill”"),
        ("Category: {categories}. Brand: {brand}", "Brand: Alder"),
        ("Product: {title}", "Product: Salt & Pepper “Mill”"),
        ("{{{title}}}", "{Salt & Pepper “Mill”}"),
        ("{categories}", ""),
    ],
)
def test_a_missing_field_takes_the_words_before_it_along(template: str, text: str) -> None:
    assert fill(template, ITEM) == text


@pytest.mark.parametrize("title", [". a", "  two  spaces ", "{brand}", "😀 مقلاة", "&amp;amp;"])
def test_the_default_leaves_a_title_as_it_is_but_for_entities(title: str) -> None:
    assert fill("{title}", {"title": title}) == title.replace("&amp;", "&")


@pytest.mark.parametrize("template", ["", "no field", "{", "}", "{title:>9}", "{title!r}", "{{title}}"])
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        fields(template)


@pytest.mark.parametrize("name", ["titel", "", "title.x", "title[0]"])
def test_an_unknown_field_names_those_there_are(name: str) -> None:
    with pytest.raises(UserError, match=r"^params.yaml: templates.x: the items have no field .*brand, title") as caught:
        check_fields(f"{{{name}}}", {"title", "brand"}, "params.yaml: templates.x")
    assert "\n" not in str(caught.value)
