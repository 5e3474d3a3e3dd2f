"""What the tables of the schema `dispatch` have in common."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, MetaData, Text

metadata = MetaData(schema="dispatch")


def time_column(name: str, *, nullable: bool = False, comment: str | None = None) -> Column:
    """A moment; its comment says which: *business* ones come from the Clock, *infrastructure* ones from the database."""
    return Column(name, DateTime(timezone=True), nullable=nullable, comment=comment)


def text_column(name: str) -> Column:
    """A text that is empty unless it is given."""
    return Column(name, Text, nullable=False, server_default="")
