"""`{card-schema}` and `{config-schema} COMMAND`: JSON schemas, from the models that read a card and a file of options."""

from __future__ import annotations

import json
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class CardSchema(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        from secateurs.artifact import Card

        return _block(Card.model_json_schema())


class ConfigSchema(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        from secateurs.cli import app
        from secateurs.cli.config import schema

        return _block(schema(app, self.arguments[0]).model_json_schema())


def _block(schema: dict[str, Any]) -> list[nodes.Node]:
    text = json.dumps(schema, indent=2, ensure_ascii=False)
    return [nodes.literal_block(text, text, language="json")]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("card-schema", CardSchema)
    app.add_directive("config-schema", ConfigSchema)
    return {"parallel_read_safe": True}
