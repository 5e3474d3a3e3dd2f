"""Templates and offers as files: `templates/<name>.yml` (title, purpose, subject, short texts), `<name>.mjml` (the page),
`<name>.liquid` (the text part of an e-mail), and `offers.yml`. What the API takes is the same documents as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from services.dispatch.templates import check
from shared.durations import format_duration, parse_duration
from shared.errors import ConfigurationError

Document = TypeVar("Document", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Code = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]


class TemplateDocument(BaseModel):
    """A template as it is written and read. All texts are Liquid; `mjml` is the page of an e-mail, `text` its text part."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    title: str = Field(default="", max_length=200)
    purpose: Literal["marketing", "transactional", "confirmation"] = "marketing"
    subject: str = ""
    mjml: str = ""
    text: str = ""
    sms: str = ""
    messenger: str = ""
    push_title: str = ""
    push: str = ""
    push_link: str = Field(
        default="", description="Where a press on the push leads; by default its text's first link, or the shop."
    )
    call: str = ""

    def parts(self) -> dict[str, str]:
        """The texts that there are, by part."""
        texts = self.model_dump(exclude={"name", "title", "purpose"})
        return {name: text for name, text in texts.items() if text.strip()}

    def faults(self) -> list[tuple[str, str]]:
        """(field, what is wrong) for everything that forbids using it; empty if nothing does."""
        return [(fault.part, fault.detail) for fault in check(self.purpose, self.parts())]


class FormOffer(BaseModel):
    """What differs for subscribers of one form."""

    model_config = ConfigDict(extra="forbid")

    code: Code
    title: str | None = Field(default=None, max_length=200)


class UnlessBought(BaseModel):
    """Goods after whose purchase an offer is not made: by product id, or by category (case does not matter). `within`: how
    long after the purchase, as a duration; null: ever."""

    model_config = ConfigDict(extra="forbid")

    products: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default=[], max_length=500)
    categories: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default=[], max_length=500)
    within: str | None = None

    @pydantic.field_validator("within")
    @classmethod
    def _a_duration(cls, value: str | None) -> str | None:
        return None if value is None else format_duration(parse_duration(value))

    @pydantic.model_validator(mode="after")
    def _of_something(self) -> Self:
        if not self.products and not self.categories:
            raise ValueError("name products or categories, or leave out unless_bought")
        return self


class OfferDocument(BaseModel):
    """An offer with static codes: one for everybody, or one for each form a subscriber came from. `valid`: how long the
    code is good after it was given, as a duration. `unless_bought`: whom it is not made to; null: everybody may have it."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    title: str = Field(default="", max_length=200)
    code: Code
    valid: str | None = None
    forms: dict[str, FormOffer] = {}
    unless_bought: UnlessBought | None = None

    @pydantic.field_validator("valid")
    @classmethod
    def _a_duration(cls, value: str | None) -> str | None:
        return None if value is None else format_duration(parse_duration(value))


def read_templates(directory: Path) -> Iterator[TemplateDocument]:
    """The templates of `directory` by name.

    :raises ConfigurationError: naming the file and the field that is wrong
    """
    for file in sorted(directory.glob("*.yml")):
        document = {"name": file.stem, **_mapping(file)}
        for part, ending in (("mjml", ".mjml"), ("text", ".liquid")):
            beside = file.with_suffix(ending)
            if beside.exists():
                document[part] = beside.read_text(encoding="utf-8")
        template = _read(TemplateDocument, document, file)
        if faults := template.faults():
            raise ConfigurationError(f"{file}: " + "; ".join(f"{field}: {detail}" for field, detail in faults))
        yield template


def read_offers(file: Path) -> list[OfferDocument]:
    """The offers of `offers.yml`. Raises ConfigurationError."""
    listed = _mapping(file).get("offers")
    if not isinstance(listed, list):
        raise ConfigurationError(f"{file}: offers must be a list.")
    return [_read(OfferDocument, document, file) for document in listed]


def _mapping(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ConfigurationError(f"{file} is not YAML: {problem}") from problem
    if not isinstance(document, dict):
        raise ConfigurationError(f"{file} must be a mapping.")
    return document


def _read(kind: type[Document], document: Any, file: Path) -> Document:
    try:
        return kind.model_validate(document)
    except pydantic.ValidationError as problem:
        complaints = [
            "/".join(map(str, e["loc"])) + ": " + e["msg"].removeprefix("Value error, ") for e in problem.errors()
        ]
        raise ConfigurationError(f"{file}: " + "; ".join(complaints)) from None
